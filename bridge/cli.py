"""The command line: the parser, and the one place that turns a user's mistake into one line.

The module of a command is imported when the command is called.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import Any

from bridge import release
from bridge.commands.options import PARAMETER_OPTIONS
from bridge.errors import UserError
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 for a failed check, 2 for a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    code = 1
    try:
        code = _run(build_parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough: discard the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(options: argparse.Namespace) -> int:
    """Import the command and call it."""
    from bridge.textures.base import TextureError

    module, _, function = options.entry_point.partition(":")
    try:
        return int(getattr(importlib.import_module(f"bridge.commands.{module}"), function)(options))
    except (UserError, InvalidValue, TextureError) as error:
        print(f"phosphene: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(prog="phosphene", description="Live video in, live diffusion out.")
    parser.add_argument("--version", action="version", version=f"phosphene {release() or 'from a checkout'}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_render(commands)
    _add_presets(commands)
    _add_sources(commands)
    _add_bench(commands)
    _add_doctor(commands)
    _add_report(commands)
    _add_stress(commands)
    return parser


def _command(commands: Any, name: str, entry_point: str, help: str) -> argparse.ArgumentParser:
    """Add a command; ``entry_point`` is MODULE:FUNCTION in ``bridge.commands``."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:])
    parser.set_defaults(entry_point=entry_point)
    return parser


def _add(parser: Any, *names: str, help: str, default_text: str = "", **settings: Any) -> None:
    """Add an option whose help ends in its default, or in ``default_text`` where None stands for one."""
    action = parser.add_argument(*names, **settings)
    default = default_text or action.default
    has_default = default is not None and not isinstance(default, bool)
    action.help = help.replace("%", "%%") + (f" (default: {default})" if has_default else "")


def _flag(parser: Any, *names: str, help: str, **settings: Any) -> None:
    _add(parser, *names, help=help, action=settings.pop("action", "store_true"), **settings)


def _add_run(commands: Any) -> None:
    run = _command(commands, "run", "run:run", "run live: textures in, transformed textures out")
    textures = run.add_argument_group("textures")
    here = "this system's transport; see `phosphene doctor`"
    _add(textures, "--source", metavar="URL", help="texture source; see `phosphene sources`", default_text=here)
    _add(textures, "--control", metavar="URL", help="second source, for ControlNet images and masks")
    _add(textures, "--sink", metavar="URL", action="append", help="texture sink; repeatable", default_text=here)

    control = run.add_argument_group("control")
    maps = "desk map: grandma3, eos, qlcplus, touchosc, resolume or a .toml file; repeatable"
    _add(control, "--desk", metavar="NAME", action="append", help=maps)
    _add(control, "--osc-port", type=int, default=9000, metavar="N", help="OSC port, UDP and TCP; 0 for any free one")
    _add(control, "--midi", metavar="PORT", help="MIDI inputs whose name contains PORT, or all; also MIDI clock")
    _flag(control, "--link", help="tempo and beat from Ableton Link")
    _add(control, "--audio", metavar="DEVICE", help="audio input for modulators: 'default' or a part of its name")
    _flag(control, "--artnet", help="Art-Net input, as /dmx/UNIVERSE/CHANNEL in desk maps")
    _add(control, "--sacn", type=int, metavar="UNIVERSE", action="append", help="sACN universe to receive; repeatable")

    network = run.add_argument_group("panel and network")
    port = "port of the panel and OSCQuery; 0 for any free one"
    _add(network, "--http-port", type=int, default=9001, metavar="N", help=port)
    _add(network, "--host", default="127.0.0.1", metavar="ADDRESS", help="listening address; 0.0.0.0 for every network")
    networks = "network that may send OSC and HTTP, such as 192.168.1.0/24; repeatable"
    _add(network, "--allow", metavar="NETWORKS", action="append", help=networks, default_text="private networks")
    folder = "folder that other machines may load files from; repeatable"
    _add(network, "--files", metavar="DIR", action="append", help=folder, default_text="the preset folders")
    _add(network, "--token", metavar="TEXT", help="panel token for other machines", default_text="random")
    _flag(network, "--open", help="open the panel in the browser")

    recovery = run.add_argument_group("recovery and log")
    state, logs = "in the system's state folder", "in the system's log folder"
    session = "crash-recovery file, 'none' to disable; --journal is its old name"
    _add(recovery, "--session", "--journal", metavar="FILE", help=session, default_text=state)
    resume = "start without the values from before a crash; --fresh is its old name"
    _flag(recovery, "--no-resume", "--fresh", dest="resume", action="store_false", help=resume)
    standby = "start no standby engine: less memory, slower recovery; --no-spare is its old name"
    _flag(recovery, "--no-standby", "--no-spare", dest="standby", action="store_false", help=standby)
    _add(recovery, "--log", metavar="FILE", help="log file in JSON lines, 'none' to disable", default_text=logs)
    _add(recovery, "--seconds", type=float, metavar="N", help="running time in seconds", default_text="unlimited")
    _add_engine(run)


def _add_render(commands: Any) -> None:
    help = "transform a video or a folder of images frame by frame, with reproducible results"
    render = _command(commands, "render", "render:render", help)
    _add(render, "input", metavar="IN", help="video, or folder of images")
    _add(render, "output", metavar="OUT", help="video, or, ending in /, folder for lossless PNGs")
    _add(render, "--control", metavar="IN", help="second video or folder, for ControlNet images and masks")
    _add_engine(render)


def _add_presets(commands: Any) -> None:
    presets = _command(commands, "presets", "presets:presets", "list the presets, or render a thumbnail of each")
    _add(presets, "--thumbnails", metavar="DIR", help="folder to render a thumbnail of each preset into")
    clip = "video or folder of images that the thumbnails are rendered from"
    _add(presets, "--input", metavar="IN", help=clip, default_text="a moving pattern")
    model = "model whose presets get thumbnails"
    _add(presets, "--for", dest="model_kind", default="pocket", metavar="KIND", help=model)
    _add_engine(presets)


def _add_sources(commands: Any) -> None:
    _command(commands, "sources", "sources:sources", "list the sources that can be opened now")


def _add_doctor(commands: Any) -> None:
    help = "check what works on this machine, with the install command for what does not"
    _command(commands, "doctor", "doctor:doctor", help)


def _add_bench(commands: Any) -> None:
    help = "measure this machine: the paper's comparisons as tables, JSON and plots"
    bench = _command(commands, "bench", "bench:bench", help)
    architectures = ("pocket", "sd15", "sd-turbo", "sdxl-turbo", "sd3")
    size = "architecture with random weights, instead of a model"
    _add(bench, "--architecture", choices=architectures, help=size)
    _flag(bench, "--quick", help="fewer rounds and rows: under two minutes on a small machine")
    _add(bench, "--clip", metavar="VIDEO", action="append", help="video for the similarity filter; repeatable")
    _add(bench, "--only", metavar="TABLES", help="comma-separated tables", default_text="all")
    side = "working size N x N; 0 for the model's own"
    _add(bench, "--side", type=int, default=0, metavar="N", help=side)
    _add(bench, "--output", metavar="DIR", default="bench", help="folder for bench.json and the plots")
    _add_engine(bench)


def _add_report(commands: Any) -> None:
    help = "collect versions, settings and the last logs in a zip for a bug report"
    report = _command(commands, "report", "report:report", help)
    _add(report, "file", nargs="?", metavar="FILE", help="zip file", default_text="phosphene-report-DATE.zip")
    _add(report, "--log", metavar="FILE", action="append", help="log in another place; repeatable")


def _add_stress(commands: Any) -> None:
    """Add ``stress`` with its three tests, and the tests' old names as commands."""
    help = "test a throwaway show: inject faults, load-test it, or run it for hours"
    stress: argparse.ArgumentParser = commands.add_parser("stress", help=help, description=help.capitalize())
    tests = stress.add_subparsers(required=True, metavar="TEST")
    faults = "inject faults into a throwaway show and report what the audience would have seen"
    load = "load-test OSC, TCP and HTTP on a throwaway show; report frame gaps and control latency"
    soak = "run a throwaway show for hours and report drifts of memory, handles and latency"
    _add_faults(_command(tests, "faults", "stress:faults", faults))
    _add_load(_command(tests, "load", "stress:load", load))
    _add_soak(_command(tests, "soak", "stress:soak", soak))
    _add_faults(_command(commands, "faults", "stress:faults", "old name of `stress faults`"))
    _add_load(_command(commands, "floods", "stress:load", "old name of `stress load`"))
    _add_soak(_command(commands, "soak", "stress:soak", "old name of `stress soak`"))


def _add_faults(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--tries", type=int, default=20, metavar="N", help="tries per fault")
    _add(parser, "--kills", type=int, default=100, metavar="N", help="tries of the fault 'engine killed'")
    _add(parser, "--only", metavar="FAULT", action="append", help="fault by its name; repeatable", default_text="all")
    _add(parser, "--gap", type=float, default=100.0, metavar="MS", help="maximum output gap, in ms")
    _add(parser, "--back", type=float, default=5.0, metavar="S", help="maximum recovery time, in s")
    _add_engine(parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--seconds", type=float, default=10.0, metavar="N", help="seconds per kind of load")
    _add_engine(parser)


def _add_soak(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--hours", type=float, default=8.0, metavar="H", help="running time, in hours")
    _add(parser, "--memory", type=float, default=1.0, metavar="MIB", help="maximum growth of memory, in MiB per hour")
    _add(parser, "--latency", type=float, default=10.0, metavar="PERCENT", help="maximum growth of p99 latency, in %")
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that starts an engine."""
    parameters = parser.add_argument_group("parameters")
    _add(parameters, "--preset", metavar="NAME", help="preset to start from: a name or a .toml file")
    config = "in the system's config folder"
    _add(parameters, "--presets", metavar="DIR", help="folder of your presets and cue lists", default_text=config)
    for option, name in PARAMETER_OPTIONS.items():
        row = TABLE[name]
        accepted = "" if row.kind == "string" else f" [{row.range_text()}]"
        metavar = "TEXT" if row.kind == "string" else row.kind.upper()
        _add(parameters, f"--{option}", metavar=metavar, help=row.help + accepted, default_text=str(row.default))
    _add(parameters, "--set", metavar="NAME=VALUE", action="append", help="any parameter by name; repeatable")
    engine = parser.add_argument_group("engine")
    _add(engine, "--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 or mps")
    compilers = "how the model is made fast; 'auto' compiles in the background where a C++ compiler is installed"
    _add(engine, "--accelerate", default="auto", choices=ACCELERATORS, help=compilers)
    _add(engine, "--hooks", metavar="DIR", help="folder of your effects: Python files, which are executed")
    _flag(engine, "--offline", help="load models from the cache only, never from the network")
    pickled = "also load pickled weights (.bin, .ckpt): they can run code, so only from authors you trust"
    _flag(engine, "--allow-pickle", help=pickled)


if __name__ == "__main__":
    sys.exit(main())
