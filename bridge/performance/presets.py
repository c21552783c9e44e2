"""Presets: TOML files of parameter values, shipped and the user's, recalled by name or number and reloaded on change.

A file holds parameters by name. Its table ``[preset]`` holds number, title, fade, unit, curve, switch and the ``model``
that the preset is designed for. A recall resets each parameter that the file leaves out to its default, so the result
never depends on what was set before; with ``partial = true`` those parameters stay as they are. ``NAME.jpg`` in the
same folder is the thumbnail.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from platformdirs import user_config_path

from bridge.performance.crossfade import Timing
from bridge.toml_files import NAME_RULE, FieldError, is_valid_name, list_toml_files, read_toml, shipped_toml_files
from engine.shared.files import FolderWatcher, check_replaceable, write_atomically
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE, lookup
from engine.shared.text import to_line

log = logging.getLogger(__name__)
MAX_PRESET_BYTES = 65536
MAX_PRESETS_PER_FOLDER = 1000
#: Time between two polls of the preset folders.
POLL_SECONDS = 0.5


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


def user_folder() -> Path:
    """Return the default folder of the user's presets."""
    return user_config_path("phosphene", appauthor=False) / "presets"


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


@dataclass(frozen=True)
class _Entry:
    """A file in a preset folder: its last valid preset, and why the present content is invalid."""

    preset: Preset | None
    problem: str = ""


class PresetLibrary:
    """The presets of several folders. A later folder overrides presets of the same name; ``save`` writes to the last.

    An invalid file is one line in the log and in ``problems``. Its last valid content stays, and the others load.
    """

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        self.folders = [user_folder()] if folders is None else list(folders)
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._shipped = {
            name: replace(read_preset(path, name), path=None) for name, path in shipped_toml_files().items()
        }
        self.presets: dict[str, Preset] = dict(self._shipped)
        self.problems: dict[str, str] = {}
        self._watcher = FolderWatcher(self._list_files, self._load)
        self.poll()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after presets are added, removed or changed."""
        self._listeners.append(listener)

    def poll(self) -> bool:
        """Reload the files that changed. Return whether a file was added, removed or changed."""
        with self._lock:
            if not self._watcher.poll():
                return False
            entries = self._watcher.entries
            self.presets = self._shipped | {
                entry.preset.name: entry.preset for entry in entries.values() if entry.preset is not None
            }
            self.problems = {to_line(path.stem): entry.problem for path, entry in entries.items() if entry.problem}
        for listener in self._listeners:
            listener()
        return True

    def _list_files(self) -> list[Path]:
        return [path for folder in self.folders for path in list_toml_files([folder])[:MAX_PRESETS_PER_FOLDER]]

    def _load(self, path: Path, previous: _Entry | None) -> _Entry:
        try:
            if not is_valid_name(path.stem):
                raise InvalidValue(f"preset {path.stem!r}: {NAME_RULE}")
            return _Entry(read_preset(path, path.stem))
        except InvalidValue as error:
            problem = str(error)
        if previous is None or previous.problem != problem:
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

    def thumbnail(self, name: str) -> bytes | None:
        """Return the thumbnail of a preset as a JPEG; None if it has none."""
        preset = self.presets.get(name)
        if preset is None:
            return None
        try:
            if preset.path is None:
                return files("presets").joinpath("thumbnails", f"{name}.jpg").read_bytes()
            return preset.path.with_suffix(".jpg").read_bytes()
        except OSError:
            return None

    def save(self, name: str, values: Mapping[str, Value], thumbnail: bytes | None = None) -> Path:
        """Save ``values`` as a preset in the last folder and return its path. Raises InvalidValue.

        A preset of that name is overwritten and keeps its ``[preset]`` settings. ``thumbnail`` is a JPEG. A link and a
        file that is no preset are not replaced.
        """
        name = name.strip()
        if not is_valid_name(name):
            raise InvalidValue(f"preset {name[:80]!r}: {NAME_RULE}")
        if not self.folders:
            raise InvalidValue("there is no folder to save presets in")
        path = self.folders[-1] / f"{name}.toml"
        text = tomli_w.dumps(_changed_values(values) | self._settings_of(name))
        try:
            self.folders[-1].mkdir(parents=True, exist_ok=True)
            picture, is_new = path.with_suffix(".jpg"), not os.path.lexists(path)
            check_replaceable(path)
            if not is_new:
                _check_preset(path, name)
            write_atomically(path, text)
            if thumbnail is not None and not (is_new and os.path.lexists(picture)):  # that picture is another one
                check_replaceable(picture)
                write_atomically(picture, thumbnail)
        except OSError as error:
            raise InvalidValue(f"preset {name!r} cannot be saved in {self.folders[-1]}: {error.strerror}") from None
        self.poll()
        return path

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


def format_presets(library: PresetLibrary) -> str:
    """Return all presets as a table for the terminal."""
    rows = [
        (
            str(preset.number or ""),
            preset.name,
            preset.title,
            preset.model,
            f"{preset.timing.length:g} {preset.timing.unit}" if preset.timing.length else "",
        )
        for preset in library.ordered
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def load_preset(name: str, folders: Sequence[Path] | None = None) -> dict[str, Value]:
    """Return the values of the preset ``name``, or of the file at that path. Raises InvalidValue."""
    path = Path(name).expanduser()
    if path.suffix == ".toml":
        return dict(read_preset(path, path.stem).values)
    return dict(PresetLibrary(folders).find(name).values)
