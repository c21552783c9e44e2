"""``phosphene stress faults|load|soak``: tests a throwaway show and reports what the audience would have seen."""

from __future__ import annotations

import argparse

from bridge.commands.options import engine_options, parameter_values, tune_for_latency
from bridge.errors import UserError


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


def soak(options: argparse.Namespace) -> int:
    """Run for ``--hours`` and print the drifts; return 1 where one exceeds its limit. Raises UserError."""
    from bridge.stress.soak import run_soak

    values = parameter_values(options)
    tune_for_latency()
    engine = engine_options(options)
    return 0 if run_soak(engine, values, options.hours, options.memory, options.latency / 100) else 1
