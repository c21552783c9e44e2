"""Cue lists: TOML files of numbered cues, each a preset or values with fade, delay and follow-on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bridge.performance.crossfade import Timing
from bridge.performance.presets import coerce_values
from bridge.toml_files import NAME_RULE, FieldError, is_valid_name, list_toml_files, read_toml, shipped_toml_files
from engine.shared.parameter import InvalidValue, Value

MAX_CUES = 10_000
MAX_CUE_LIST_BYTES = 1 << 20
#: Longest delay or follow-on, in seconds or beats.
MAX_WAIT = 86_400.0
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,3})?")


@dataclass(frozen=True)
class Cue:
    """One cue.

    ``number`` is written as on a lighting desk, 1 or 1.5. ``timing`` is None if the preset's timing applies. ``delay``
    and ``follow`` count in the unit of the timing.
    """

    number: str
    title: str = ""
    preset: str = ""
    values: Mapping[str, Value] | None = None
    timing: Timing | None = None
    unit: str = "seconds"
    delay: float = 0.0
    follow: float | None = None


@dataclass(frozen=True)
class CueList:
    """Cues in the order of their numbers."""

    name: str
    cues: Sequence[Cue]
    title: str = ""

    def find(self, number: str) -> int:
        """Return the index of a cue. Raises InvalidValue."""
        normalized = normalize_number(number)
        for index, cue in enumerate(self.cues):
            if cue.number == normalized:
                return index
        raise InvalidValue(f"cue list {self.name!r} has no cue {number[:40]!r}")


class _CueTable(msgspec.Struct, forbid_unknown_fields=True):
    """One table ``[[cue]]`` of a file."""

    number: str | int | float
    title: str | int = ""
    preset: str | int = ""
    values: dict[str, Any] = msgspec.field(default_factory=dict)
    delay: float = 0.0
    follow: float | None = None
    fade: float | None = None
    unit: str = "seconds"
    curve: str | None = None
    switch: float | None = None

    def __post_init__(self) -> None:
        try:
            self.number = normalize_number(self.number)
        except InvalidValue as error:
            raise FieldError("number", str(error)) from None
        try:
            self.values = coerce_values(self.values)
        except FieldError as error:
            raise FieldError(("values", *error.path), str(error)) from None
        for key, wait in (("delay", self.delay), ("follow", self.follow)):
            if wait is not None and not 0.0 <= wait <= MAX_WAIT:
                raise FieldError(key, f"{key} takes a time from 0 to {MAX_WAIT:g}, got {wait:g}")
        self.timing()

    def timing(self) -> Timing | None:
        """Return the cue's timing; None if it has neither fade, curve nor switch. Raises FieldError."""
        default = Timing(unit=self.unit)
        if self.fade is None and self.curve is None and self.switch is None:
            return None
        return Timing(
            default.length if self.fade is None else self.fade,
            self.unit,
            default.curve if self.curve is None else self.curve,
            default.switch if self.switch is None else self.switch,
        )

    def cue(self) -> Cue:
        """Return the cue."""
        return Cue(
            str(self.number),
            str(self.title),
            str(self.preset),
            self.values,
            self.timing(),
            self.unit,
            self.delay,
            self.follow,
        )


class _CueListFile(msgspec.Struct, forbid_unknown_fields=True):
    """A cue list's file."""

    title: str | int | float = ""
    cue: list[_CueTable] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.cue) > MAX_CUES:
            raise FieldError("cue", f"a cue list holds at most {MAX_CUES} cues, got {len(self.cue)}")
        numbers: set[object] = set()
        for index, cue in enumerate(self.cue):
            if cue.number in numbers:
                raise FieldError(("cue", index, "number"), f"the cue number {cue.number} is used twice")
            numbers.add(cue.number)


def normalize_number(number: object) -> str:
    """Return a cue number as text without trailing zeros: ``1.50`` is ``1.5``. Raises InvalidValue."""
    text = f"{number:g}" if isinstance(number, float) else str(number).strip()
    if isinstance(number, bool) or not _NUMBER.fullmatch(text):
        raise InvalidValue(f"a cue is numbered as 1 or 1.5, got {text[:40]!r}")
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{int(whole)}.{fraction}" if fraction else str(int(whole))


def read_cue_list(path: Any, name: str) -> CueList:
    """Read a cue list from a file, or from a resource of a package. Raises InvalidValue with the line at fault."""
    content = read_toml(path, f"cue list {name!r}", MAX_CUE_LIST_BYTES, _CueListFile)
    cues = sorted((table.cue() for table in content.cue), key=lambda cue: float(cue.number))
    return CueList(name, cues, str(content.title))


def list_cue_lists(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the files of all cue lists by name: the shipped ones, overridden by those in ``folders``."""
    return shipped_toml_files("cues") | {
        path.stem: path for path in list_toml_files(folders) if is_valid_name(path.stem)
    }


def load_cue_list(name: str, folders: Sequence[Path]) -> CueList:
    """Return the cue list ``name``; an empty name is an empty list. Raises InvalidValue."""
    if not name:
        return CueList("", ())
    if not is_valid_name(name):
        raise InvalidValue(f"cue list {name[:80]!r}: {NAME_RULE}")
    paths = list_cue_lists(folders)
    if name not in paths:
        raise InvalidValue(f"no cue list {name!r}; there are {', '.join(sorted(paths))}")
    return read_cue_list(paths[name], name)
