"""The one table of everything that can be controlled, and the immutable snapshots that cross to the engine.

Light on purpose: no torch. OSC dispatch, validation, the command line, presets, the preview page and the
README's reference all read this table; nothing lists the parameters a second time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Value = float | int | bool | str
ROOT = "/phosphene"
#: Longest text a parameter takes, in characters.
MAX_TEXT = 4096
_SIZE = re.compile(r"\s*(\d{1,5})\s*(?:[x×*,]\s*(\d{1,5}))?\s*", re.IGNORECASE)
_TRUE, _FALSE = {"1", "on", "true", "yes"}, {"0", "off", "false", "no"}


class BadValue(ValueError):
    """A value that a parameter cannot take; the text names the parameter, the value and what is accepted."""


@dataclass(frozen=True)
class Parameter:
    """One control. ``kind``: float, int, bool, string, choice, size, schedule or trigger.

    ``name`` is the OSC address without the root. ``live`` parameters apply at the next frame; the others
    are loaded beside the running stream and swapped in at a frame boundary. A parameter with ``where``
    "bridge" is applied outside the engine process.
    """

    name: str
    kind: str
    default: Value
    help: str
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    choices: tuple[str, ...] = ()
    live: bool = True
    where: str = "engine"

    def coerce(self, arguments: Sequence[object]) -> Value:
        """The value that OSC arguments (or one text from the command line) mean here.

        Numbers out of range are clamped. Raises BadValue for anything that cannot be meant.
        """
        if len(arguments) != 1:
            wanted = "no argument or one" if self.kind in ("bool", "trigger") else "one argument"
            raise BadValue(f"{self.name} takes {wanted}, got {len(arguments)}")
        return _COERCE[self.kind](self, arguments[0])

    def range_text(self) -> str:
        """What is accepted, for people: ``0–1``, ``linear, spherical``, ``WxH`` …"""
        if self.kind in ("float", "int"):
            return f"{self.low:g}–{self.high:g}{' ' + self.unit if self.unit else ''}"
        if self.kind == "choice":
            return ", ".join(self.choices)
        texts = {"bool": "on, off", "size": "WxH", "schedule": "falling timesteps", "trigger": "no argument"}
        return texts.get(self.kind, "text")


def _number(p: Parameter, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadValue(f"{p.name} takes a number, got {_shown(value)}") from None
    if not isinstance(value, int | float):
        raise BadValue(f"{p.name} takes a number, got {_shown(value)}")
    if isinstance(value, int):
        return min(max(value, p.low), p.high)
    if not math.isfinite(value):
        raise BadValue(f"{p.name} takes a finite number, got {value}")
    return min(max(value, p.low), p.high)


def _bool(p: Parameter, value: object) -> bool:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise BadValue(f"{p.name} takes on or off, got {_shown(value)}")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadValue(f"{p.name} takes on or off, got {_shown(value)}")
    return bool(value)


def _text(p: Parameter, value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"{p.name} takes text, got {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise BadValue(f"{p.name} takes at most {MAX_TEXT} characters, got {len(value)}")
    if "\x00" in value:
        raise BadValue(f"{p.name} takes text without NUL characters")
    return value


def _choice(p: Parameter, value: object) -> str:
    """A word of the list, or its index from 0, as menus send it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(p.choices):
        return p.choices[value]
    if isinstance(value, str) and value.strip().lower() in p.choices:
        return value.strip().lower()
    raise BadValue(f"{p.name} takes one of {', '.join(p.choices)}, got {_shown(value)}")


def _size(p: Parameter, value: object) -> str:
    """``WxH`` or one number for a square, each side clamped to the range and rounded to a multiple of 8. May be empty if the default is."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadValue(f"{p.name} takes a size such as 512x512, got {_shown(value)}")
    if not value.strip() and p.default == "":
        return ""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise BadValue(f"{p.name} takes a size such as 512x512, got {_shown(value)}")
    sides = [int(match[1]), int(match[2] or match[1])]
    width, height = (int(min(max(round(s / 8) * 8, p.low), p.high)) for s in sides)
    return f"{width}x{height}"


def _schedule(p: Parameter, value: object) -> str:
    """One to eight strictly falling training timesteps, or nothing."""
    text = _text(p, str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value)
    try:
        steps = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        steps = [math.nan]
    falling = all(a > b for a, b in itertools.pairwise(steps))
    if len(steps) > 8 or not falling or not all(0 <= s <= 1000 for s in steps):
        raise BadValue(f"{p.name} takes up to 8 falling timesteps from 1000 to 0, such as 699 399, got {_shown(value)}")
    return " ".join(f"{s:g}" for s in steps)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


_COERCE: Mapping[str, Any] = {
    "float": lambda p, v: float(_number(p, v)),
    "int": lambda p, v: math.floor(_number(p, v) + 0.5),
    "bool": _bool,
    "trigger": _bool,
    "string": _text,
    "choice": _choice,
    "size": _size,
    "schedule": _schedule,
}


def parse_size(text: str) -> tuple[int, int]:
    """``WxH`` → (width, height)."""
    width, height = text.split("x")
    return int(width), int(height)


_LAST_SEED = 2**31 - 1
_ROWS = [
    Parameter("/prompt", "string", "neon tunnel, magenta and cyan", "What to paint"),
    *[Parameter(f"/prompt/{i}", "string", "", f"Prompt {i}, blended in by its weight; empty: unused") for i in (2, 3, 4)],
    *[Parameter(f"/prompt/{i}/weight", "float", 1.0, f"Weight of prompt {i} in the blend") for i in (1, 2, 3, 4)],
    Parameter("/prompt/blend", "choice", "linear", "How prompts are blended", choices=("linear", "spherical")),
    Parameter("/negative", "string", "", "What to avoid (guidance modes full and onetime)"),
    Parameter("/seed", "int", 1, "Seed of the noise", high=_LAST_SEED),
    Parameter("/seed/2", "int", 2, "Second seed", high=_LAST_SEED),
    Parameter("/seed/mix", "float", 0.0, "From seed 1 (0) to seed 2 (1), spherically"),
    Parameter("/seed/random", "trigger", False, "Draws a new first seed", where="bridge"),
    Parameter("/mode", "choice", "image", "image transforms the input, text paints from noise", choices=("image", "text")),
    Parameter("/strength", "float", 0.5, "How far from the input: 0 keeps it, 1 ignores it"),
    Parameter("/steps", "int", 2, "Denoising steps a frame", low=1, high=8),
    Parameter("/schedule", "schedule", "", "Explicit training timesteps, high to low; empty: from strength and steps"),
    Parameter("/buffer", "int", 1, "Frames taken together each tick", low=1, high=4, unit="frames"),
    Parameter("/guidance", "float", 1.0, "Guidance scale; 1 is none", high=20.0),
    Parameter(
        "/guidance/mode", "choice", "self", "Classifier-free guidance: residual (self, onetime), full or none",
        choices=("none", "full", "self", "onetime"),
    ),
    Parameter("/guidance/delta", "float", 1.0, "Strength of the residual noise", high=2.0),
    Parameter("/similarity", "bool", False, "Skips frames that hardly changed"),
    Parameter("/similarity/threshold", "float", 0.98, "Similarity from which frames may be skipped; 1 never skips"),
    Parameter("/similarity/max_skip", "int", 10, "Most frames skipped in a row", high=1000, unit="frames"),
    Parameter(
        "/similarity/measure", "choice", "local", "local sees small motion; cosine is the paper's",
        choices=("local", "cosine"),
    ),
    Parameter("/freeze", "bool", False, "Holds the output picture", where="bridge"),
    Parameter("/bypass", "bool", False, "Sends the input through untouched", where="bridge"),
    Parameter("/blackout", "bool", False, "Sends black", where="bridge"),
    Parameter("/master", "float", 1.0, "Brightness of the output", where="bridge"),
    Parameter("/fit", "choice", "crop", "How an input of another shape is fitted", choices=("crop", "fit", "stretch"), where="bridge"),
    Parameter("/output/size", "size", "", "Size of the output; empty: the working size", low=16, high=4096, where="bridge"),
    Parameter("/model", "string", "pocket", "pocket, a diffusers folder, a single file or a hub name", live=False),
    Parameter("/size", "size", "256x256", "Working size of the diffusion", low=64, high=2048, live=False),
    Parameter(
        "/dtype", "choice", "auto", "Precision of the model",
        choices=("auto", "float32", "bfloat16", "float16"), live=False,
    ),
    Parameter("/reset", "trigger", False, "Sets every live parameter back to its default", where="bridge"),
]  # fmt: skip

#: Name → parameter, in the order of the reference.
TABLE: Mapping[str, Parameter] = MappingProxyType({row.name: row for row in _ROWS})


def canonical(name: str) -> str:
    """A parameter's own name from what a user wrote: the leading slash and the root are optional, ``/prompt/1`` is ``/prompt``."""
    name = "/" + name.strip().strip("/")
    if name.startswith(ROOT + "/"):
        name = name.removeprefix(ROOT)
    return {"/prompt/1": "/prompt", "/seed/1": "/seed"}.get(name, name)


def lookup(name: str) -> Parameter:
    """The parameter called ``name``; BadValue where there is none."""
    found = TABLE.get(canonical(name))
    if found is None:
        raise BadValue(f"no parameter is called {_shown(name)}")
    return found


class Snapshot(Mapping[str, Value]):
    """Every parameter's value at one moment: immutable and numbered. Missing names take their defaults."""

    def __init__(self, values: Mapping[str, Value] | None = None, number: int = 0) -> None:
        self._values = {name: p.default for name, p in TABLE.items() if p.kind != "trigger"} | dict(values or {})
        self.number = number

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, name: str) -> str:
        return str(self._values[name])

    def real(self, name: str) -> float:
        return float(self._values[name])

    def whole(self, name: str) -> int:
        return int(self._values[name])

    def flag(self, name: str) -> bool:
        return bool(self._values[name])


def changed(values: Mapping[str, str]) -> dict[str, Value]:
    """Checked values from texts, as ``--set NAME=VALUE`` gives them. Raises BadValue."""
    return {canonical(name): lookup(name).coerce([text]) for name, text in values.items()}
