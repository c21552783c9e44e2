"""What the command line's options mean, for every command that shares them."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.errors import UserError
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import parse_settings
from engine.shared.table import canonical

#: Options that stand for a parameter, in both run and render.
SHORT = {
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


def values_of(options: argparse.Namespace) -> dict[str, Value]:
    """The parameters that the command line sets, checked by the table: the preset's, then the options', then ``--set``. Raises BadValue."""
    preset: dict[str, Value] = {}
    if options.preset:
        from bridge.performance.presets import load_preset

        preset = load_preset(options.preset, preset_folders(options))
    if options.hooks:
        from bridge.control.hook_parameters import declare_all

        declare_all(options.hooks)
    texts = {name: getattr(options, short) for short, name in SHORT.items() if getattr(options, short) is not None}
    for pair in options.set or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {pair!r}")
        texts[canonical(name)] = text
    return preset | parse_settings(texts)


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """What the command line says about the engine process itself."""
    return EngineOptions(options.device, options.offline, options.allow_pickle, options.hooks or "", options.accelerate)


def preset_folders(options: argparse.Namespace) -> list[Path] | None:
    """Where one's own presets lie; None for the usual place. Raises UserError."""
    if options.presets is None:
        return None
    folder = Path(options.presets).expanduser()
    if not folder.is_dir():
        raise UserError(f"--presets takes a folder, got {options.presets!r}")
    return [folder]
