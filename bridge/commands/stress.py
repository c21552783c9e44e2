"""``phosphene stress faults|load|abuse|soak``: tests a throwaway show and reports what the audience would have seen."""

from __future__ import annotations

import argparse

from bridge.commands.options import (
    add_engine_options,
    add_option,
    engine_options,
    parameter_values,
    tune_for_latency,
)
from bridge.errors import UserError

HELP = "test a throwaway show: inject faults, load-test it, abuse it, or run it for hours"
#: Test → its help.
TESTS = {
    "faults": "inject faults into a throwaway show and report what the audience would have seen",
    "load": "load-test OSC, TCP and HTTP on a throwaway show; report frame gaps and control latency",
    "abuse": "attack a throwaway show and misuse the commands in a scratch folder; report what held",
    "soak": "run a throwaway show for hours and report drifts of memory, handles and latency",
}
#: Former commands → the test that each was.
OLD_NAMES = {"faults": "faults", "floods": "load", "soak": "soak"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tests and their options."""
    tests = parser.add_subparsers(required=True, metavar="TEST")
    for name, help in TESTS.items():
        add_old_name(tests.add_parser(name, help=help, description=help[:1].upper() + help[1:]), name)


def add_old_name(parser: argparse.ArgumentParser, test: str) -> None:
    """Add the options of one test, which ``parser`` then runs."""
    {"faults": _add_faults, "load": _add_load, "abuse": _add_abuse, "soak": _add_soak}[test](parser)
    parser.set_defaults(test=test)


def main(options: argparse.Namespace) -> int:
    """Run the test; return 1 where a limit was exceeded. Raises UserError."""
    return {"faults": faults, "load": load, "abuse": abuse, "soak": soak}[options.test](options)


def faults(options: argparse.Namespace) -> int:
    """Inject faults and print the table; return 1 where a value was lost or a limit exceeded. Raises UserError."""
    from bridge.stress.faults import Limits, find_faults, run_faults

    selected = find_faults(options.only)
    limits = Limits(gap_seconds=options.gap / 1000, recovery_seconds=options.back)
    values = parameter_values(options)
    tune_for_latency()
    return 0 if run_faults(engine_options(options), values, selected, options.tries, options.kills, limits) else 1


def load(options: argparse.Namespace) -> int:
    """Load-test and print the table; return 1 where a limit was exceeded. Raises UserError."""
    from bridge.stress.load import run_load

    if options.seconds < 1:
        raise UserError("--seconds takes 1 or more")
    values = parameter_values(options)
    tune_for_latency()
    return 0 if run_load(engine_options(options), values, options.seconds) else 1


def abuse(options: argparse.Namespace) -> int:
    """Carry out the abuses and print the table; return 1 where something did not hold. Raises UserError."""
    from bridge.stress.abuse import find_abuses, run_abuses
    from bridge.stress.abuse_commands import COMMANDS
    from bridge.stress.abuse_files import FILES
    from bridge.stress.abuse_network import NETWORK

    selected = find_abuses((*NETWORK, *FILES, *COMMANDS), options.only)
    return 0 if run_abuses(selected, options.seconds, options.descriptors) else 1


def soak(options: argparse.Namespace) -> int:
    """Run for ``--hours`` and print the drifts; return 1 where one exceeds its limit. Raises UserError."""
    from bridge.stress.soak import run_soak

    values = parameter_values(options)
    tune_for_latency()
    engine = engine_options(options)
    return 0 if run_soak(engine, values, options.hours, options.memory, options.latency / 100) else 1


def _add_faults(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--tries", type=int, default=20, metavar="N", help="tries per fault")
    add_option(parser, "--kills", type=int, default=100, metavar="N", help="tries of the fault 'engine killed'")
    add_option(
        parser, "--only", metavar="FAULT", action="append", help="fault by its name; repeatable", default_text="all"
    )
    add_option(parser, "--gap", type=float, default=100.0, metavar="MS", help="maximum output gap, in ms")
    add_option(parser, "--back", type=float, default=5.0, metavar="S", help="maximum recovery time, in s")
    add_engine_options(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--seconds", type=float, default=10.0, metavar="N", help="seconds per kind of load")
    add_engine_options(parser)


def _add_abuse(parser: argparse.ArgumentParser) -> None:
    add_option(
        parser, "--only", metavar="ABUSE", action="append", help="abuse by its name; repeatable", default_text="all"
    )
    add_option(parser, "--seconds", type=float, default=10.0, metavar="N", help="seconds per kind of flood")
    descriptors = "open files and sockets that the show may have, 0 for the system's limit; not on Windows"
    add_option(parser, "--descriptors", type=int, default=256, metavar="N", help=descriptors)


def _add_soak(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--hours", type=float, default=8.0, metavar="H", help="running time, in hours")
    add_option(
        parser, "--memory", type=float, default=1.0, metavar="MIB", help="maximum growth of memory, in MiB per hour"
    )
    add_option(
        parser, "--latency", type=float, default=10.0, metavar="PERCENT", help="maximum growth of p99 latency, in %"
    )
    add_engine_options(parser)
