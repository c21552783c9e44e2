"""Cue lists: TOML files of numbered cues, each a preset or values with fade, delay and follow-on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bridge.file_reader import SCAN_SECONDS, FileReader
from bridge.performance.crossfade import Timing
from bridge.performance.preset_file import MAX_TITLE_CHARACTERS, coerce_values
from bridge.toml_files import NAME_RULE, FieldError, is_valid_name, list_toml_files, read_toml, shipped_toml_files
from engine.shared.files import FolderScan, FolderWatcher
from engine.shared.parameter import InvalidValue, Value
from engine.shared.text import to_line

MAX_CUES = 10_000
#: Cue lists that are held in memory, in bytes of their files.
MAX_BYTES_OF_CUE_LISTS = 4 << 20
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
            to_line(str(self.title), MAX_TITLE_CHARACTERS),
            to_line(str(self.preset), MAX_TITLE_CHARACTERS),
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
    return CueList(name, cues, to_line(str(content.title), MAX_TITLE_CHARACTERS))


def load_cue_list(name: str, folders: Sequence[Path]) -> CueList:
    """Return the cue list ``name``; an empty name is an empty list. Raises InvalidValue."""
    return CueLibrary(folders).find(name)


class CueLibrary:
    """The cue lists of several folders in memory, and the shipped ones. A later folder overrides the same name.

    ``reader`` reads the files. Raises InvalidValue where the folders do not answer.
    """

    def __init__(self, folders: Sequence[Path] = (), reader: FileReader | None = None) -> None:
        self._folders, self._reader = list(folders), reader or FileReader()
        self._place = f"cue lists in {', '.join(map(str, self._folders))}"
        self._shipped = {name: read_cue_list(path, name) for name, path in shipped_toml_files("cues").items()}
        #: Each list, or why its file cannot be used.
        self._watcher: FolderWatcher[CueList | str] = FolderWatcher(self._list_files, self._load, SCAN_SECONDS)
        self._lists: dict[str, CueList | str] = {}
        self._excess: set[Path] = set()
        self._accept(self._reader.call(self._place, self._watcher.scan) if self._folders else None)

    @property
    def names(self) -> list[str]:
        """The names of all cue lists, as they were last read."""
        return sorted(self._lists)

    def find(self, name: str) -> CueList:
        """Return a cue list as it was last read; an empty name is an empty list. Raises InvalidValue."""
        if not name:
            return CueList("", ())
        if not is_valid_name(name):
            raise InvalidValue(f"cue list {name[:80]!r}: {NAME_RULE}")
        content = self._lists.get(name)
        if content is None:
            raise InvalidValue(f"no cue list {name!r}; there are {', '.join(self.names)[:400]}")
        if isinstance(content, str):
            raise InvalidValue(content)
        return content

    def poll(self, then: Callable[[], None] = lambda: None, key: object = "poll") -> None:
        """Let the reader reload the files that changed, and call ``then`` afterwards, also where that fails."""

        def accept(scan: FolderScan[CueList | str] | None) -> None:
            self._accept(scan)
            then()

        self._reader.submit(self._place, self._watcher.scan, accept, lambda _reason: then(), (self._place, key))

    def _accept(self, scan: FolderScan[CueList | str] | None) -> None:
        self._watcher.accept(scan)
        self._lists = {**self._shipped, **{path.stem: entry for path, entry in self._watcher.entries.items()}}

    def _list_files(self) -> list[Path]:
        paths, total = [path for path in list_toml_files(self._folders) if is_valid_name(path.stem)], 0
        excess = set()
        for path in paths:
            with suppress(OSError):
                size = path.stat().st_size
                total += size if size <= MAX_CUE_LIST_BYTES else 0
            if total > MAX_BYTES_OF_CUE_LISTS:
                excess.add(path)
        self._excess = excess
        return paths

    def _load(self, path: Path, _previous: CueList | str | None) -> CueList | str:
        """Return the list, or the problem. Every list stays in memory, so that it starts at once."""
        if path in self._excess:
            return f"cue list {path.stem!r} is not read: all together have more than {MAX_BYTES_OF_CUE_LISTS >> 20} MiB"
        try:
            return read_cue_list(path, path.stem)
        except InvalidValue as error:
            return str(error)
