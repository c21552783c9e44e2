"""The parameter table as the TouchDesigner component needs it: custom parameters by page, under valid names.

Phosphene is not importable inside TouchDesigner. ``python -m bridge.guides.generate`` therefore writes this
description to ``touchdesigner/parameters.json``, beside the script that builds the component.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge.performance.presets import PresetLibrary
from engine.shared.parameter import Parameter
from engine.shared.table import ROOT, TABLE

PROJECT_FILE = Path(__file__).parents[2] / "pyproject.toml"
#: Page → first part of the names of its parameters. The component's pages and the reference's sections.
PAGES = {
    "Look": ("prompt", "negative", "seed", "mode", "strength", "steps", "schedule", "eta", "guidance"),
    "Adapters": ("lora", "control", "reference"),
    "Time": ("feedback", "smoothing", "consistency", "tempo"),
    "Picture": ("input", "mask", "mix", "fit", "output", "master", "blackout", "freeze", "bypass", "fallback"),
    "Cues": ("preset", "cue", "panic", "learn"),
    "Modulators": ("mod", "audio"),
    "Engine": ("model", "autoencoder", "size", "dtype", "buffer", "similarity", "regions", "reset"),
}
#: Parameter kind → TouchDesigner parameter style; every other kind is a Str.
STYLES = {"float": "Float", "int": "Int", "bool": "Toggle", "choice": "Menu", "trigger": "Pulse"}
#: Commands that take one of several names: the component shows a menu that the running engine fills.
MENU_COMMANDS = ("/preset", "/cue/goto")
#: Upper end of the sliders. Wider ranges, such as a seed's, can still be typed in.
MAX_SLIDER_VALUE = 1000.0


def group_parameters() -> dict[str, list[Parameter]]:
    """Return the parameters of each page, in the table's order. Parameters of user effects belong to no page."""
    pages: dict[str, list[Parameter]] = {page: [] for page in PAGES}
    for parameter in TABLE.values():
        head = parameter.name.split("/")[1]
        page = next((page for page, heads in PAGES.items() if head in heads), None)
        if page is not None:
            pages[page].append(parameter)
    return pages


def component_name(name: str) -> str:
    """Convert a parameter's name to TouchDesigner's form: ``/prompt/2/weight`` → ``Prompt2weight``.

    TouchDesigner accepts one capital letter, then lower case letters and digits.
    """
    return re.sub(r"[^a-z0-9]", "", name.lower()).capitalize()


def project_version() -> str:
    """Return the version in the checkout's pyproject.toml, whether or not it is installed."""
    return str(tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]["version"])


def describe_component() -> dict[str, Any]:
    """Return the component's version, OSC root, pages, and the presets it lists before the engine answers."""
    pages = {
        page: [_describe(parameter) for parameter in parameters] for page, parameters in group_parameters().items()
    }
    presets = [[preset.name, preset.title or preset.name] for preset in PresetLibrary([]).ordered]
    return {"version": project_version(), "root": ROOT, "pages": pages, "presets": presets}


def to_json() -> str:
    """Return the content of ``touchdesigner/parameters.json``."""
    return json.dumps(describe_component(), indent=1, ensure_ascii=False) + "\n"


def _describe(parameter: Parameter) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": component_name(parameter.name),
        "address": ROOT + parameter.name,
        "label": _label(parameter.name.strip("/").split("/")),
        "style": "Menu" if parameter.name in MENU_COMMANDS else STYLES.get(parameter.kind, "Str"),
        "command": parameter.kind == "command",
        "help": parameter.help + (f" ({parameter.unit})" if parameter.unit else ""),
    }
    if parameter.has_value:
        row["default"] = parameter.default
    if parameter.kind in ("float", "int"):
        row |= {"min": parameter.low, "max": parameter.high, "slider": min(parameter.high, MAX_SLIDER_VALUE)}
    if parameter.choices:
        row["menu"] = list(parameter.choices)
    return row


def _label(parts: Iterable[str]) -> str:
    return " ".join(part.replace("_", " ").capitalize() for part in parts)
