"""Preset files: TOML files of parameter values.

A file holds parameters by name. Its table ``[preset]`` holds number, title, fade, unit, curve, switch and the ``model``
that the preset is designed for. A recall resets each parameter that the file leaves out to its default, so the result
never depends on what was set before; with ``partial = true`` those parameters stay as they are. ``NAME.jpg`` in the
same folder is the thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bridge.performance.crossfade import Timing
from bridge.toml_files import FieldError, read_toml
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE, lookup
from engine.shared.text import to_line

MAX_PRESET_BYTES = 65536
#: Longest title and name of a model, and the largest number: the status and the panel show them all the time.
MAX_TITLE_CHARACTERS, MAX_NUMBER = 200, 2**31 - 1


@dataclass(frozen=True)
class Preset:
    """A preset. ``values`` are those of its file, ``recall_values`` all that a recall sets."""

    name: str
    values: Mapping[str, Value]
    number: int | None = None
    title: str = ""
    timing: Timing = field(default_factory=Timing)
    partial: bool = False
    model: str = ""
    path: Path | None = None

    @property
    def recall_values(self) -> dict[str, Value]:
        """The file's values over the defaults of every parameter that presets hold."""
        if self.partial:
            return dict(self.values)
        return {row.name: row.default for row in TABLE.values() if row.is_part_of_look} | dict(self.values)


class PresetSettings(msgspec.Struct, forbid_unknown_fields=True):
    """The table ``[preset]`` of a file."""

    number: int | None = None
    title: str = ""
    fade: float = 0.0
    unit: str = "seconds"
    curve: str = "linear"
    switch: float = 0.5
    partial: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        self.title, self.model = to_line(self.title, MAX_TITLE_CHARACTERS), to_line(self.model, MAX_TITLE_CHARACTERS)
        if self.number is not None and abs(self.number) > MAX_NUMBER:
            raise FieldError("number", f"number takes a whole number up to {MAX_NUMBER}")
        self.timing()

    def timing(self) -> Timing:
        """Return the timing of a recall. Raises FieldError."""
        return Timing(self.fade, self.unit, self.curve, self.switch)


class _PresetFile(msgspec.Struct, forbid_unknown_fields=True):
    """A preset's file; ``values`` are the top-level keys."""

    preset: PresetSettings = msgspec.field(default_factory=PresetSettings)
    values: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = coerce_values(self.values)


def read_preset(path: Any, name: str) -> Preset:
    """Read a preset from a file, or from a resource of a package. Raises InvalidValue with the line at fault."""
    content = read_toml(path, f"preset {name!r}", MAX_PRESET_BYTES, _PresetFile, rest="values")
    settings = content.preset
    return Preset(
        name,
        content.values,
        settings.number,
        settings.title,
        settings.timing(),
        settings.partial,
        settings.model,
        path if isinstance(path, Path) else None,
    )


def coerce_values(content: Mapping[str, Any]) -> dict[str, Value]:
    """Return the values of parameters by their full names, coerced by the table. Raises FieldError."""
    values: dict[str, Value] = {}
    for key, value in content.items():
        try:
            parameter = lookup(key)
            if not parameter.has_value:
                raise InvalidValue(f"{key} is a {parameter.kind} and holds no value")
            values[parameter.name] = parameter.coerce([value])
        except InvalidValue as error:
            raise FieldError(key, str(error)) from None
    return values
