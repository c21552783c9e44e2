"""Presets: those that are shipped and the user's, recalled by name or number, saved, and reloaded on change."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w
from platformdirs import user_config_path

from bridge.file_reader import SCAN_SECONDS, FileReader, expand_user, raise_invalid
from bridge.performance.preset_file import Preset, coerce_values, read_preset
from bridge.rate_limit import RateLimit
from bridge.toml_files import MAX_FILES_PER_FOLDER, NAME_RULE, is_valid_name, list_toml_files, shipped_toml_files
from engine.shared.files import FolderScan, FolderWatcher, check_replaceable, write_atomically
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE
from engine.shared.text import to_line
from engine.shared.user_files import read_bytes

log = logging.getLogger(__name__)
#: Largest thumbnail file that is read.
MAX_THUMBNAIL_BYTES = 1 << 20
#: Invalid files that are named.
MAX_PROBLEMS = 100
#: Time between two polls of the preset folders.
POLL_SECONDS = 0.5


def user_folder() -> Path:
    """Return the default folder of the user's presets."""
    return user_config_path("phosphene", appauthor=False) / "presets"


@dataclass(frozen=True)
class _Entry:
    """A file in a preset folder: its last valid preset, and why the present content is invalid."""

    preset: Preset | None
    problem: str = ""


class PresetLibrary:
    """The presets of several folders. A later folder overrides presets of the same name; ``save`` writes to the last.

    An invalid file is one line in the log and in ``problems``. Its last valid content stays, and the others load.
    All files are read and written by ``reader``. Raises InvalidValue where the folders do not answer.
    """

    def __init__(self, folders: Sequence[Path] | None = None, reader: FileReader | None = None) -> None:
        self.folders = [user_folder()] if folders is None else list(folders)
        self.reader = reader or FileReader()
        self._place = f"presets in {', '.join(map(str, self.folders))}"
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._log_limit = RateLimit(MAX_PROBLEMS)
        self._shipped = {
            name: replace(read_preset(path, name), path=None) for name, path in shipped_toml_files().items()
        }
        self.presets: dict[str, Preset] = dict(self._shipped)
        self.problems: dict[str, str] = {}
        #: Saved presets, each with the entry of its file before: it counts until the file has another.
        self._saved: dict[str, tuple[Preset, _Entry | None]] = {}
        self._watcher = FolderWatcher(self._list_files, self._load, SCAN_SECONDS)
        self._accept(self.reader.call(self._place, self._watcher.scan))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after presets are added, removed or changed."""
        self._listeners.append(listener)

    def poll(self) -> bool:
        """Let the reader reload the files that changed. Return whether this has added, removed or changed any."""
        changed: list[bool] = []
        self.reader.submit(
            self._place, self._watcher.scan, lambda scan: changed.append(self._accept(scan)), key=self._place
        )
        return any(changed)

    def _accept(self, scan: FolderScan[_Entry] | None) -> bool:
        with self._lock:
            if not self._watcher.accept(scan):
                return False
            entries = self._watcher.entries
            self._saved = {
                name: (preset, entry)
                for name, (preset, entry) in self._saved.items()
                if preset.path is not None and entries.get(preset.path) is entry
            }
            self._merge()
            bad = [(path.stem, entry.problem) for path, entry in entries.items() if entry.problem]
            self.problems = {to_line(name, 80): to_line(problem, 300) for name, problem in bad[:MAX_PROBLEMS]}
            if len(bad) > MAX_PROBLEMS:
                self.problems["…"] = f"{len(bad) - MAX_PROBLEMS} more files cannot be read"
        self._notify()
        return True

    def _merge(self) -> None:
        entries = self._watcher.entries.values()
        loaded = {entry.preset.name: entry.preset for entry in entries if entry.preset is not None}
        self.presets = self._shipped | loaded | {name: preset for name, (preset, _) in self._saved.items()}

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    def _list_files(self) -> list[Path]:
        return list_toml_files(self.folders)

    def _load(self, path: Path, previous: _Entry | None) -> _Entry:
        try:
            if not is_valid_name(path.stem):
                raise InvalidValue(f"preset {path.stem!r}: {NAME_RULE}")
            return _Entry(read_preset(path, path.stem))
        except InvalidValue as error:
            problem = str(error)
        if (previous is None or previous.problem != problem) and self._log_limit.passes()[0]:
            log.error("%s", problem)
        return _Entry(previous.preset if previous is not None else None, problem)

    @property
    def ordered(self) -> list[Preset]:
        """All presets by number, then by name."""
        with self._lock:
            return sorted(
                self.presets.values(), key=lambda preset: (preset.number is None, preset.number or 0, preset.name)
            )

    def find(self, name: str) -> Preset:
        """Return the preset with that name or number. Raises InvalidValue."""
        with self._lock:
            preset = self.presets.get(name.strip())
            if preset is None and name.strip().isdecimal():
                preset = next((preset for preset in self.ordered if preset.number == int(name)), None)
        if preset is None:
            names = ", ".join(preset.name for preset in self.ordered)
            raise InvalidValue(f"no preset {name[:80]!r}; there are {names[:400]}")
        return preset

    def fetch_thumbnail(self, name: str, done: Callable[[bytes | None], object]) -> None:
        """Call ``done`` with the thumbnail of a preset, a JPEG, or None, once the reader has it."""
        self.reader.submit("thumbnails", lambda: self.thumbnail(name), done, lambda _reason: done(None))

    def thumbnail(self, name: str) -> bytes | None:
        """Return the thumbnail of a preset as a JPEG; None if it has none. Reads a file."""
        preset = self.presets.get(name)
        if preset is None:
            return None
        try:
            if preset.path is None:
                return files("presets").joinpath("thumbnails", f"{name}.jpg").read_bytes()
            return read_bytes(preset.path.with_suffix(".jpg"), MAX_THUMBNAIL_BYTES)
        except OSError:
            return None

    def save(
        self,
        name: str,
        values: Mapping[str, Value],
        thumbnail: bytes | None = None,
        fail: Callable[[str], None] = raise_invalid,
    ) -> Path:
        """Save ``values`` as a preset in the last folder and return its path. Raises InvalidValue.

        It may be recalled at once; the reader writes its file, and calls ``fail`` with the reason if that fails.
        A preset of that name is overwritten and keeps its ``[preset]`` settings. ``thumbnail`` is a JPEG. A link and a
        file that is no preset are not replaced.
        """
        name = name.strip()
        if not is_valid_name(name):
            raise InvalidValue(f"preset {name[:80]!r}: {NAME_RULE}")
        if not self.folders:
            raise InvalidValue("there is no folder to save presets in")
        folder, content = self.folders[-1], _changed_values(values)
        path = folder / f"{name}.toml"
        with self._lock:
            self._check_room(name)
            text = tomli_w.dumps(content | self._settings_of(name))
            previous = self.presets.get(name, Preset(name, {}))
            preset = replace(previous, values=coerce_values(content), partial=False, path=path)
            self._saved[name] = preset, self._watcher.entries.get(path)
            self._merge()
        self._notify()

        def write() -> FolderScan[_Entry] | None:
            _write(path, text, thumbnail)
            return self._watcher.scan()

        def report(reason: str) -> None:
            fail(f"preset {name!r} cannot be saved in {folder}: {reason}")

        self.reader.submit(self._place, write, self._accept, report, key=path, is_write=True)
        return path

    def _check_room(self, name: str) -> None:
        """Raise InvalidValue where a folder full of presets would get another: no more of them are read."""
        count = sum(preset.path is not None for preset in self.presets.values())
        preset = self.presets.get(name)
        if count >= MAX_FILES_PER_FOLDER and (preset is None or preset.path is None):
            raise InvalidValue(f"preset {name!r} is not saved: there are {count} presets already")

    def _settings_of(self, name: str) -> dict[str, Any]:
        """Return the table ``[preset]`` of the preset that a save overwrites."""
        preset = self.presets.get(name)
        if preset is None:
            return {}
        timing = preset.timing
        settings = {
            "number": preset.number,
            "title": preset.title,
            "fade": timing.length,
            "unit": timing.unit,
            "curve": timing.curve,
            "switch": timing.switch,
            "model": preset.model,
        }
        return {"preset": {key: value for key, value in settings.items() if value is not None}}


def _write(path: Path, text: str, thumbnail: bytes | None) -> None:
    """Write a preset and its thumbnail. Raises OSError, or InvalidValue where a file that is no preset is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture, is_new = path.with_suffix(".jpg"), not os.path.lexists(path)
    check_replaceable(path)
    if not is_new:
        _check_preset(path, path.stem)
    write_atomically(path, text)
    if thumbnail is not None and not (is_new and os.path.lexists(picture)):  # that picture is another one
        check_replaceable(picture)
        write_atomically(picture, thumbnail)


def _check_preset(path: Path, name: str) -> None:
    """Check that a file which a save would overwrite is a preset. Raises InvalidValue."""
    try:
        read_preset(path, name)
    except InvalidValue as error:
        raise InvalidValue(f"{error}; a save does not overwrite this file") from None


def _changed_values(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the values that a preset holds and that differ from their defaults, by the keys of a file."""
    rows = (row for row in TABLE.values() if row.is_part_of_look)
    return {row.name.strip("/"): values[row.name] for row in rows if values[row.name] != row.default}


def load_preset(name: str, folders: Sequence[Path] | None = None) -> dict[str, Value]:
    """Return the values of the preset ``name``, or of the file at that path. Raises InvalidValue."""
    if not name.endswith(".toml"):
        return dict(PresetLibrary(folders).find(name).values)
    path = expand_user(name)
    return dict(FileReader().call(f"preset {name[:80]!r}", lambda: read_preset(path, path.stem)).values)
