"""Parameter: one control of the show, and the coercion of incoming values to its type."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.shared.text import is_valid_unicode

Value = float | int | bool | str
#: Longest text of a parameter, in characters.
MAX_TEXT_LENGTH = 4096
#: Most denoising steps of a frame.
MAX_STEPS = 50
_SIZE = re.compile(r"\s*(\d{1,5})\s*(?:[x×*,]\s*(\d{1,5}))?\s*", re.IGNORECASE)
_TRUE, _FALSE = {"1", "on", "true", "yes"}, {"0", "off", "false", "no"}


class InvalidValue(ValueError):
    """An invalid value; the text names the parameter, the value and what is accepted."""


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table. ``name`` is the OSC address without the root.

    ``kind`` is float, int, bool, string, choice, size, schedule, steps, trigger, or command (a trigger with an
    argument).
    A ``live`` parameter applies at the next frame. Any other is loaded while the stream runs and swapped in at a frame
    boundary. ``where`` is the process that applies it, engine or bridge. ``in_look`` is False for live parameters of
    the engine that presets do not store.
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
    in_look: bool = True

    @property
    def is_part_of_look(self) -> bool:
        """Whether presets and cues store the parameter."""
        return self.in_look and self.live and self.where == "engine" and self.has_value

    @property
    def has_value(self) -> bool:
        """Whether the parameter has a value; triggers and commands have none."""
        return self.kind not in ("trigger", "command")

    def coerce(self, arguments: Sequence[object]) -> Value:
        """Convert OSC arguments, or one text of the command line, to a value of this parameter.

        Numbers out of range are clamped. Raises InvalidValue for anything else that does not fit.
        """
        if len(arguments) != 1:
            expected = "no argument or one" if self.kind in ("bool", "trigger") else "one argument"
            raise InvalidValue(f"{self.name} takes {expected}, got {len(arguments)}")
        return _COERCE[self.kind](self, arguments[0])

    def range_text(self) -> str:
        """Return the accepted values for people: ``0–1``, ``linear, spherical``, ``WxH`` …"""
        if self.kind in ("float", "int"):
            spec = "g" if self.kind == "float" else ".0f"
            return f"{self.low:{spec}}–{self.high:{spec}}{' ' + self.unit if self.unit else ''}"
        if self.kind == "choice":
            return ", ".join(self.choices)
        texts = {
            "bool": "on, off",
            "size": "WxH",
            "schedule": "falling timesteps",
            "steps": "rising step numbers",
            "trigger": "no argument",
            "command": "text or a number",
        }
        return texts.get(self.kind, "text")


def _number(p: Parameter, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidValue(f"{p.name} takes a number, got {abbreviate(value)}") from None
    if not isinstance(value, int | float):
        raise InvalidValue(f"{p.name} takes a number, got {abbreviate(value)}")
    if isinstance(value, int):
        return min(max(value, p.low), p.high)
    if not math.isfinite(value):
        raise InvalidValue(f"{p.name} takes a finite number, got {value}")
    return min(max(value, p.low), p.high)


def _bool(p: Parameter, value: object) -> bool:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise InvalidValue(f"{p.name} takes on or off, got {abbreviate(value)}")
    if not isinstance(value, int) and not (isinstance(value, float) and math.isfinite(value)):
        raise InvalidValue(f"{p.name} takes on or off, got {abbreviate(value)}")
    return bool(value)


def _text(p: Parameter, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValue(f"{p.name} takes text, got {abbreviate(value)}")
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidValue(f"{p.name} takes at most {MAX_TEXT_LENGTH} characters, got {len(value)}")
    if "\x00" in value:
        raise InvalidValue(f"{p.name} takes text without NUL characters")
    if not is_valid_unicode(value):
        raise InvalidValue(f"{p.name} takes valid Unicode text, got {abbreviate(value)}")
    return value


def _command(p: Parameter, value: object) -> str:
    """Return text as it is, and a number as people write it."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return _text(p, str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _choice(p: Parameter, value: object) -> str:
    """Return a word of the list, from the word or from its index from 0, as menus send it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(p.choices):
        return p.choices[value]
    if isinstance(value, str) and value.strip().lower() in p.choices:
        return value.strip().lower()
    raise InvalidValue(f"{p.name} takes one of {', '.join(p.choices)}, got {abbreviate(value)}")


def _size(p: Parameter, value: object) -> str:
    """Parse ``WxH``, or one number for a square. An empty text is accepted if it is the default.

    Each side is rounded to a multiple of 8 and clamped to the range.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidValue(f"{p.name} takes a size such as 512x512, got {abbreviate(value)}")
    if not value.strip() and p.default == "":
        return ""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise InvalidValue(f"{p.name} takes a size such as 512x512, got {abbreviate(value)}")
    sides = [int(match[1]), int(match[2] or match[1])]
    width, height = (int(min(max(round(s / 8) * 8, p.low), p.high)) for s in sides)
    return f"{width}x{height}"


def _schedule(p: Parameter, value: object) -> str:
    """Parse up to MAX_STEPS strictly falling training timesteps; an empty text is accepted."""
    text = _text(p, str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value)
    try:
        steps = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        steps = [math.nan]
    falling = all(a > b for a, b in itertools.pairwise(steps))
    if len(steps) > MAX_STEPS or not falling or not all(0 <= s <= 1000 for s in steps):
        raise InvalidValue(
            f"{p.name} takes up to {MAX_STEPS} falling timesteps from 1000 to 0, such as 699 399, "
            f"got {abbreviate(value)}"
        )
    return " ".join(f"{s:g}" for s in steps)


def _steps(p: Parameter, value: object) -> str:
    """Parse step numbers from 0, in any order, to ``12 22``; an empty text is accepted."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _text(p, str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    numbers = text.replace(",", " ").split()
    if not all(number.isascii() and number.isdecimal() and int(number) < MAX_STEPS for number in numbers):
        raise InvalidValue(
            f"{p.name} takes step numbers from 0 to {MAX_STEPS - 1}, such as 12 22, got {abbreviate(value)}"
        )
    return " ".join(map(str, sorted(set(map(int, numbers)))))


def abbreviate(value: object) -> str:
    """Return the value's repr, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


_COERCE: Mapping[str, Any] = {
    "float": lambda p, v: float(_number(p, v)),
    "int": lambda p, v: math.floor(_number(p, v) + 0.5),
    "bool": _bool,
    "trigger": _bool,
    "command": _command,
    "string": _text,
    "choice": _choice,
    "size": _size,
    "schedule": _schedule,
    "steps": _steps,
}


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``WxH`` to (width, height)."""
    width, height = text.split("x")
    return int(width), int(height)
