"""The commands and their options. A command's module is imported when it is called."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import sys

from bridge import release
from bridge.commands.options import SHORT, preset_folders, values_of
from bridge.errors import UserError
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE

#: The commands that run something, each a function of the same name in its module; imported when it is called.
SHOWS = {
    "run": "commands.run",
    "render": "commands.render",
    "bench": "commands.bench",
    "faults": "stress.faults",
    "floods": "stress.load",
    "soak": "stress.soak",
}
#: Those in which frames pass in time.
LIVE = ("run", "faults", "floods", "soak")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 fine, 1 something does not work, 2 a mistake in what was asked."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    code = 1
    try:
        code = _run(_parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read, such as head, has seen enough; what is left to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(options: argparse.Namespace) -> int:
    from bridge.textures.base import TextureError

    try:
        if options.command in SHOWS:
            command = getattr(importlib.import_module(f"bridge.{SHOWS[options.command]}"), options.command)
            if options.command in LIVE:
                steady()
            return int(command(options, values_of(options)))
        if options.command == "presets":
            from bridge.performance.presets import Library, listing

            library = Library(preset_folders(options))
            if options.thumbnails is None:
                print(listing(library))
                return 0
            from bridge.commands.render import thumbnails

            return thumbnails(options, library, values_of(options))
        if options.command == "report":
            from bridge.commands.report import report

            return report(options)
        from bridge.commands import doctor as inspection

        return inspection.doctor() if options.command == "doctor" else inspection.sources()
    except (UserError, InvalidValue, TextureError) as error:
        print(f"phosphene: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def steady() -> None:
    """Nothing that runs in this process is to hold the others up: not who reads a flood of packets, nor a search for garbage."""
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()  # the libraries stay, and are not looked at again


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="phosphene", description="Live video in, live diffusion out.")
    parser.add_argument("--version", action="version", version=f"phosphene {release() or 'from a checkout'}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run live: textures in, transformed textures out")
    run.add_argument("--source", metavar="URL", help="where pictures come from (see `phosphene sources`)")
    run.add_argument("--control", metavar="URL", help="a second source, for control pictures and masks")
    run.add_argument("--sink", metavar="URL", action="append", help="where pictures go; may be given several times")
    run.add_argument(
        "--desk",
        metavar="NAME",
        action="append",
        help="a map: grandma3, eos, qlcplus, touchosc, resolume, or a .toml file",
    )
    run.add_argument(
        "--midi",
        metavar="PORT",
        help="listen to MIDI inputs whose name holds PORT, or to all; for desk maps and MIDI clock",
    )
    run.add_argument("--link", action="store_true", help="one tempo and beat with Ableton Link")
    run.add_argument(
        "--audio", metavar="DEVICE", help="listen to sound for modulators: default, or a part of an input's name"
    )
    run.add_argument("--artnet", action="store_true", help="listen to Art-Net, for desk maps: /dmx/UNIVERSE/CHANNEL")
    run.add_argument(
        "--sacn", type=int, metavar="UNIVERSE", action="append", help="listen to a universe of sACN; may be repeated"
    )
    run.add_argument("--osc-port", type=int, default=9000, metavar="N", help="UDP port for OSC (9000; 0: any free one)")
    run.add_argument(
        "--http-port",
        type=int,
        default=9001,
        metavar="N",
        help="port of the panel and OSCQuery (9001; 0: any free one)",
    )
    run.add_argument(
        "--journal",
        metavar="FILE",
        help="where what is set is kept, for after a crash (the system's state folder); none: nowhere",
    )
    run.add_argument(
        "--log", metavar="FILE", help="where the log goes, JSON lines (the system's log folder); none: nowhere"
    )
    run.add_argument("--fresh", action="store_true", help="do not go on with what was set before a crash")
    run.add_argument(
        "--no-spare",
        action="store_true",
        help="keep no second engine process waiting: saves memory, a restart takes longer",
    )
    run.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (127.0.0.1; 0.0.0.0 for every network)",
    )
    run.add_argument(
        "--allow",
        metavar="NETWORKS",
        action="append",
        help="who may send OSC and HTTP, as 192.168.1.0/24 (private networks)",
    )
    run.add_argument(
        "--files",
        metavar="DIR",
        action="append",
        help="where other machines may name files, with --host; may be repeated (own presets)",
    )
    run.add_argument(
        "--token",
        metavar="TEXT",
        help="what the panel asks other machines for (drawn anew where --host is not this machine)",
    )
    run.add_argument("--open", action="store_true", help="open the panel in the browser")
    run.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    _common(run)

    render = commands.add_parser("render", help="transform a video or a folder of pictures, every frame, repeatably")
    render.add_argument("input", metavar="IN", help="a video, or a folder of pictures")
    render.add_argument("output", metavar="OUT", help="a video, or, ending in /, a folder for lossless PNGs")
    render.add_argument(
        "--control", metavar="IN", help="a second video or folder, for control pictures and masks, frame by frame"
    )
    _common(render)

    bench = commands.add_parser("bench", help="measure this machine: the paper's comparisons as tables, JSON and plots")
    bench.add_argument(
        "--architecture",
        choices=("pocket", "sd15", "sd-turbo", "sdxl-turbo", "sd3"),
        help="random weights of that size",
    )
    bench.add_argument(
        "--quick", action="store_true", help="fewer rounds and rows, within two minutes on a small machine"
    )
    bench.add_argument(
        "--clip", metavar="VIDEO", action="append", help="a video for the similarity filter; may be given several times"
    )
    bench.add_argument("--only", metavar="TABLES", help="only these tables, separated by commas")
    bench.add_argument("--side", type=int, default=0, metavar="N", help="working size N x N (the model's own)")
    bench.add_argument("--output", metavar="DIR", default="bench", help="where bench.json and the plots go (bench)")
    _common(bench)

    faults = commands.add_parser(
        "faults", help="break a show of its own in every way that shows break, and say what the audience saw of it"
    )
    faults.add_argument("--tries", type=int, default=20, metavar="N", help="how often each fault is tried (20)")
    faults.add_argument("--kills", type=int, default=100, metavar="N", help="how often the engine is killed (100)")
    faults.add_argument(
        "--only", metavar="FAULT", action="append", help="only this fault, by its name; may be repeated"
    )
    faults.add_argument(
        "--gap", type=float, default=100.0, metavar="MS", help="the longest gap on the output that is passed (100)"
    )
    faults.add_argument(
        "--back", type=float, default=5.0, metavar="S", help="the longest time until live again that is passed (5)"
    )
    _common(faults)

    floods = commands.add_parser(
        "floods", help="send a show of its own more than any desk does, and say what was felt of it"
    )
    floods.add_argument("--seconds", type=float, default=10.0, metavar="N", help="how long each flood lasts (10)")
    _common(floods)

    soak = commands.add_parser(
        "soak", help="run a show of its own for hours, and say whether memory, handles and latency stayed flat"
    )
    soak.add_argument("--hours", type=float, default=8.0, metavar="H", help="how long (8)")
    soak.add_argument(
        "--memory", type=float, default=1.0, metavar="MIB", help="growth an hour that is passed, in MiB (1)"
    )
    soak.add_argument(
        "--latency", type=float, default=10.0, metavar="PERCENT", help="growth of the latency that is passed (10)"
    )
    _common(soak)

    presets = commands.add_parser("presets", help="list the presets, or draw a picture of each")
    presets.add_argument(
        "--thumbnails", metavar="DIR", help="draw a picture of each preset that was made for the model into this folder"
    )
    presets.add_argument(
        "--input", metavar="IN", help="what they are drawn over: a video or a folder of pictures (a moving pattern)"
    )
    presets.add_argument(
        "--for", dest="kind", default="pocket", metavar="KIND", help="those made for this kind of model (pocket)"
    )
    _common(presets)

    commands.add_parser("doctor", help="say what works on this machine, and what makes the rest work")
    report = commands.add_parser(
        "report", help="put what a bug report needs into one zip: versions, settings, the last log"
    )
    report.add_argument("file", nargs="?", metavar="FILE", help="the zip (phosphene-report-DATE.zip)")
    report.add_argument("--log", metavar="FILE", action="append", help="a log that lies elsewhere; may be repeated")
    commands.add_parser("sources", help="list the sources that can be opened now")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help="a look to start from, by name or as a .toml file")
    parser.add_argument(
        "--presets", metavar="DIR", help="a folder of your own presets, cue lists in cues/ (the system's config folder)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--accelerate",
        default="auto",
        choices=ACCELERATORS,
        help="what makes the model fast (auto: run compiles beside the stream where a C++ compiler is there; tensorrt: never tried)",
    )
    parser.add_argument("--hooks", metavar="DIR", help="a folder of your own effects, Python files that are run")
    parser.add_argument(
        "--offline", action="store_true", help="take models from the cache alone, never from the network"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="also read pickled weights (.bin, .ckpt), which can run code: only from makers you trust",
    )
    for short, name in SHORT.items():
        parameter = TABLE[name]
        parser.add_argument(
            f"--{short}", metavar=parameter.kind.upper(), help=f"{parameter.help} ({parameter.range_text()})"
        )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        help="any other parameter, such as similarity=on; may be repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
