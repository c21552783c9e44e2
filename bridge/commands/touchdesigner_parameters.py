"""What the TouchDesigner component has to know of the table: its custom parameters by page, with names that TouchDesigner takes.

TouchDesigner's Python has no Phosphene in it, so this is kept as ``touchdesigner/parameters.json`` beside the script that builds the
component; ``python -m bridge.commands.generate_docs`` writes it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from bridge import release
from bridge.performance.presets import Library
from engine.shared.parameter import Parameter
from engine.shared.table import ROOT, TABLE

#: Pages of the component, and the first parts of the names that are on them, in the table's order.
PAGES = {
    "Look": ("prompt", "negative", "seed", "mode", "strength", "steps", "schedule", "eta", "guidance"),
    "Adapters": ("lora", "control", "reference"),
    "Time": ("feedback", "smoothing", "consistency", "tempo"),
    "Picture": ("input", "mask", "mix", "fit", "output", "master", "blackout", "freeze", "bypass", "fallback"),
    "Cues": ("preset", "cue", "panic", "learn"),
    "Modulators": ("mod", "audio"),
    "Engine": ("model", "autoencoder", "size", "dtype", "buffer", "similarity", "reset"),
}
#: What a kind of parameter is called in TouchDesigner.
STYLES = {"float": "Float", "int": "Int", "bool": "Toggle", "choice": "Menu", "trigger": "Pulse"}
#: Commands that are told one of several names: the component shows a menu, which the running engine fills.
MENUS = ("/preset", "/cue/goto")
#: Largest slider: seeds go further.
SLIDER = 1000.0


def component_name(name: str) -> str:
    """A parameter's name as TouchDesigner takes it, one capital before lower case and digits: ``/prompt/2/weight`` → ``Prompt2weight``."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).capitalize()


def described() -> dict[str, Any]:
    """The whole component: its version, its pages, and the presets that it starts with."""
    pages: dict[str, list[dict[str, Any]]] = {page: [] for page in PAGES}
    for parameter in TABLE.values():
        head = parameter.name.split("/")[1]
        page = next((page for page, heads in PAGES.items() if head in heads), None)
        if page is not None:
            pages[page].append(_row(parameter))
    presets = [[preset.name, preset.title or preset.name] for preset in Library([]).ordered]
    return {"version": release(), "root": ROOT, "pages": pages, "presets": presets}


def text() -> str:
    """The file's content."""
    return json.dumps(described(), indent=1, ensure_ascii=False) + "\n"


def _row(parameter: Parameter) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": component_name(parameter.name),
        "address": ROOT + parameter.name,
        "label": _label(parameter.name.strip("/").split("/")),
        "style": "Menu" if parameter.name in MENUS else STYLES.get(parameter.kind, "Str"),
        "command": parameter.kind == "command",
        "help": parameter.help + (f" ({parameter.unit})" if parameter.unit else ""),
    }
    if parameter.holds:
        row["default"] = parameter.default
    if parameter.kind in ("float", "int"):
        row |= {"min": parameter.low, "max": parameter.high, "slider": min(parameter.high, SLIDER)}
    if parameter.choices:
        row["menu"] = list(parameter.choices)
    return row


def _label(parts: Iterable[str]) -> str:
    return " ".join(part.replace("_", " ").capitalize() for part in parts)
