"""Cue lists as they lie in files: numbered cues as on a lighting desk, each a preset or values, with fade, delay and follow-on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bridge.performance.crossfade import Timing
from bridge.performance.presets import checked, settled, timing
from bridge.toml_files import FieldError, is_valid_name, line_of, read_toml
from engine.shared.parameter import InvalidValue, Value

#: Most cues of a list, and the longest delay or follow-on, in its unit.
MOST, LONGEST = 10_000, 86_400.0
#: Largest file, in bytes.
LARGEST = 1 << 20
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,3})?")
_OWN = ("number", "title", "preset", "values", "delay", "follow", "fade", "unit", "curve", "switch")


@dataclass(frozen=True)
class Cue:
    """One cue. ``number`` is as on a desk, 1 or 1.5; ``timing`` is None where the preset's own holds. Times count in the timing's unit."""

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
        """The place of a cue. Raises BadValue."""
        wanted = _plain(number)
        for place, cue in enumerate(self.cues):
            if cue.number == wanted:
                return place
        raise InvalidValue(f"cue list {self.name!r} has no cue {number[:40]!r}")


def _plain(number: object) -> str:
    """A cue's number as text, ``1.50`` as ``1.5``. Raises BadValue."""
    text = f"{number:g}" if isinstance(number, float) else str(number).strip()
    if isinstance(number, bool) or not _NUMBER.fullmatch(text):
        raise InvalidValue(f"a cue is numbered as 1 or 1.5, got {text[:40]!r}")
    whole, _, part = text.partition(".")
    part = part.rstrip("0")
    return f"{int(whole)}.{part}" if part else str(int(whole))


def read_list(path: Any, name: str) -> CueList:
    """The cue list in a file or a resource. Raises BadValue with the cue and the line where they are known."""
    text, content = read_toml(path, f"cue list {name!r}", LARGEST)
    entries = content.get("cue", [])
    odd = [key for key in content if key not in ("cue", "title")]
    if (
        odd
        or not isinstance(entries, list)
        or not all(isinstance(entry, dict) for entry in entries)
        or len(entries) > MOST
    ):
        raise InvalidValue(
            f"cue list {name!r} is a title and at most {MOST} tables [[cue]]{f', not {odd[0]!r}' if odd else ''}"
        )
    cues: dict[str, Cue] = {}
    for place, entry in enumerate(entries, 1):
        try:
            cue = _cue(entry)
            if cue.number in cues:
                raise InvalidValue("its number is there twice")
        except InvalidValue as error:
            line = line_of(text, error.key) if isinstance(error, FieldError) else ""
            raise InvalidValue(
                f"cue list {name!r}, cue {entry.get('number', f'at place {place}')}{line}: {error}"
            ) from None
        cues[cue.number] = cue
    ordered = sorted(cues.values(), key=lambda cue: float(cue.number))
    title = content.get("title", "")
    return CueList(name, ordered, title if isinstance(title, str) else "")


def _cue(entry: Mapping[str, Any]) -> Cue:
    odd = next((key for key in entry if key not in _OWN), None)
    if odd is not None:
        raise FieldError(odd, f"no setting is called {odd!r}; there are {', '.join(_OWN)}")
    preset, values, title = entry.get("preset", ""), entry.get("values", {}), entry.get("title", "")
    for key, value in (("preset", preset), ("title", title)):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise FieldError(key, f"{key} takes text, got {value!r}")
    if not isinstance(values, dict):
        raise FieldError("values", "values must be a table")
    told = settled({key: entry[key] for key in ("fade", "unit", "curve", "switch") if key in entry})
    times: dict[str, float | None] = {}
    for key in ("delay", "follow"):
        value = entry.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST
        ):
            raise FieldError(key, f"{key} takes a time from 0 to {LONGEST:g}, got {value!r}")
        times[key] = None if value is None else float(value)
    own = timing(told) if told.keys() - {"unit"} else None
    return Cue(_plain(entry.get("number", "")), str(title), str(preset), checked(values), own, told.get("unit", "seconds"),
               times["delay"] or 0.0, times["follow"])  # fmt: skip


def shipped() -> dict[str, Any]:
    """The lists that come with Phosphene, by name."""
    return {
        path.name.removesuffix(".toml"): path
        for path in files("presets").joinpath("cues").iterdir()
        if path.name.endswith(".toml")
    }


def located(name: str, folders: Sequence[Path]) -> CueList:
    """The cue list called ``name``; no name is an empty list. Raises BadValue."""
    if not name:
        return CueList("", ())
    if not is_valid_name(name):
        raise InvalidValue(
            f"a cue list is called by letters, digits, blanks, dots, dashes and underscores, got {name[:80]!r}"
        )
    found = shipped() | {path.stem: path for folder in folders for path in folder.glob("*.toml")}
    if name not in found:
        raise InvalidValue(f"no cue list {name!r}; there are {', '.join(sorted(found))}")
    return read_list(found[name], name)
