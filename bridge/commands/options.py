"""What shared command-line options mean: parameter values, engine options and preset folders."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from bridge.errors import UserError
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import parse_settings
from engine.shared.table import canonical

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


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """Return the options of the engine process."""
    return EngineOptions(options.device, options.offline, options.allow_pickle, options.hooks or "", options.accelerate)


def preset_folders(options: argparse.Namespace) -> list[Path] | None:
    """Return the folders of ``--presets``; None for the default folder. Raises UserError."""
    if options.presets is None:
        return None
    folder = Path(options.presets).expanduser()
    if not folder.is_dir():
        raise UserError(f"--presets takes a folder, got {options.presets!r}")
    return [folder]


def tune_for_latency() -> None:
    """Tune this process for steady latency: switch threads every 1 ms and freeze the garbage collector's heap."""
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()  # the libraries stay, and no collection scans them again
