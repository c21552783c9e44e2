"""Command-line options: how they are declared, those that commands share, and what these mean."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

from bridge.errors import UserError
from bridge.file_reader import FileReader, expand_user
from engine.shared.options import ACCELERATORS, EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import parse_settings
from engine.shared.table import TABLE, canonical

#: Options that set a parameter: option without dashes → parameter.
PARAMETER_OPTIONS = {
    "prompt": "/prompt",
    "negative": "/negative",
    "seed": "/seed",
    "mode": "/mode",
    "strength": "/strength",
    "steps": "/steps",
    "guidance": "/guidance",
    "model": "/model",
    "dtype": "/dtype",
    "size": "/size",
    "fit": "/fit",
}


def add_option(parser: Any, *names: str, help: str, default_text: str = "", **settings: Any) -> None:
    """Add an option whose help ends in its default, or in ``default_text`` where None stands for one."""
    action = parser.add_argument(*names, **settings)
    default = default_text or action.default
    has_default = default is not None and not isinstance(default, bool)
    action.help = help.replace("%", "%%") + (f" (default: {default})" if has_default else "")


def add_flag(parser: Any, *names: str, help: str, **settings: Any) -> None:
    """Add an option without a value."""
    add_option(parser, *names, help=help, action=settings.pop("action", "store_true"), **settings)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that starts an engine."""
    parameters = parser.add_argument_group("parameters")
    add_option(parameters, "--preset", metavar="NAME", help="preset to start from: a name or a .toml file")
    config = "in the system's config folder"
    add_option(parameters, "--presets", metavar="DIR", help="folder of your presets and cue lists", default_text=config)
    for option, name in PARAMETER_OPTIONS.items():
        row = TABLE[name]
        accepted = "" if row.kind == "string" else f" [{row.range_text()}]"
        metavar = "TEXT" if row.kind == "string" else row.kind.upper()
        add_option(parameters, f"--{option}", metavar=metavar, help=row.help + accepted, default_text=str(row.default))
    add_option(parameters, "--set", metavar="NAME=VALUE", action="append", help="any parameter by name; repeatable")
    engine = parser.add_argument_group("engine")
    add_option(engine, "--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 or mps")
    compilers = "how the model is made fast; 'auto' records CUDA graphs on a GPU, and compiles where that is possible"
    add_option(engine, "--accelerate", default="auto", choices=ACCELERATORS, help=compilers)
    add_option(engine, "--hooks", metavar="DIR", help="folder of your effects: Python files, which are executed")
    add_flag(engine, "--offline", help="load models from the cache only, never from the network")
    pickled = "also load pickled weights (.bin, .ckpt): they can run code, so only from authors you trust"
    add_flag(engine, "--allow-pickle", help=pickled)


def parameter_values(options: argparse.Namespace) -> dict[str, Value]:
    """Return the parameters that the command line sets: the preset's, then the options', then those of ``--set``.

    Raises UserError, or InvalidValue for a value that its parameter does not take.
    """
    preset: dict[str, Value] = {}
    if options.preset:
        from bridge.performance.presets import load_preset

        preset = load_preset(options.preset, preset_folders(options))
    if options.hooks:
        from bridge.control.hook_parameters import declare_all

        declare_all(options.hooks)
    texts = {
        name: getattr(options, option)
        for option, name in PARAMETER_OPTIONS.items()
        if getattr(options, option) is not None
    }
    for pair in options.set or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {pair!r}")
        texts[canonical(name)] = text
    return preset | parse_settings(texts)


def engine_options(options: argparse.Namespace, only_downloads_of_start: bool = False) -> EngineOptions:
    """Return the options of the engine process.

    With ``only_downloads_of_start`` only the models that the command line names may be downloaded.
    """
    downloads = None
    if only_downloads_of_start:
        values = parameter_values(options)
        names = [str(values.get(name, "")) for name in ("/model", "/autoencoder")]
        downloads = frozenset(names) | {str(Path(name).expanduser()) for name in names}
    return EngineOptions(
        options.device,
        options.offline,
        options.allow_pickle,
        options.hooks or "",
        options.accelerate,
        downloads=downloads,
    )


def preset_folders(options: argparse.Namespace) -> list[Path] | None:
    """Return the folders of ``--presets``; None for the default folder. Raises UserError."""
    if options.presets is None:
        return None
    folder = expand_user(options.presets)
    if not FileReader().call(f"--presets {folder}", folder.is_dir):
        raise UserError(f"--presets takes a folder, got {options.presets!r}")
    return [folder]


def tune_for_latency() -> None:
    """Tune this process for steady latency: switch threads every 1 ms and freeze the garbage collector's heap."""
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()  # the libraries stay, and no collection scans them again
