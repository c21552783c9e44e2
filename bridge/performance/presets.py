"""Presets: looks as TOML files, shipped and one's own, recalled by name or number and read again when they are edited.

A file holds parameters by name, and under ``[preset]`` its number, title, fade, unit, curve and switch point, and the kind of ``model``
that it was made for. What it leaves out of a look takes its default, so that a look is the same whatever was before; ``partial = true``
leaves that as it is instead. A picture of the look lies beside it, ``NAME.jpg``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w
from platformdirs import user_config_path

from bridge.performance.crossfade import Timing
from bridge.toml_files import FieldError, is_valid_name, line_of, read_toml
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE, lookup

log = logging.getLogger(__name__)
#: Largest preset file in bytes, most presets of a folder, and how often folders are looked at, in seconds.
LARGEST, MOST, EVERY = 65536, 1000, 0.5
_SETTINGS = {
    "number": int,
    "title": str,
    "fade": float,
    "unit": str,
    "curve": str,
    "switch": float,
    "partial": bool,
    "model": str,
}


@dataclass(frozen=True)
class Preset:
    """A look under its name. ``values`` are what its file sets, ``look`` is all that a recall sets."""

    name: str
    values: Mapping[str, Value]
    number: int | None = None
    title: str = ""
    timing: Timing = field(default_factory=Timing)
    partial: bool = False
    model: str = ""
    path: Path | None = None

    @property
    def look(self) -> dict[str, Value]:
        """The file's values over the defaults of everything that belongs to a look."""
        if self.partial:
            return dict(self.values)
        return {row.name: row.default for row in TABLE.values() if row.look} | dict(self.values)


def own_folder() -> Path:
    """Where presets are saved unless another folder is named."""
    return user_config_path("phosphene", appauthor=False) / "presets"


def read(path: Any, name: str) -> Preset:
    """The preset in a file, or in a resource of a package. Raises BadValue with the line where it is known."""
    text, content = read_toml(path, f"preset {name!r}", LARGEST)
    settings = content.pop("preset", {})
    try:
        told = settled(settings)
        return Preset(name, checked(content), told.get("number"), told.get("title", ""), timing(told), told.get("partial", False),
                      told.get("model", ""), path if isinstance(path, Path) else None)  # fmt: skip
    except FieldError as error:
        raise InvalidValue(f"preset {name!r}{line_of(text, error.key)}: {error}") from None
    except InvalidValue as error:
        raise InvalidValue(f"preset {name!r}: {error}") from None


def checked(content: Mapping[str, Any]) -> dict[str, Value]:
    """Values of parameters by their names, checked by the table. Raises Wrong."""
    values: dict[str, Value] = {}
    for key, value in content.items():
        try:
            parameter = lookup(key)
            if parameter.kind in ("trigger", "command"):
                raise InvalidValue(f"{key} is no value to keep")
            values[parameter.name] = parameter.coerce([value])
        except InvalidValue as error:
            raise FieldError(key, str(error)) from None
    return values


def settled(settings: Any) -> dict[str, Any]:
    """The settings of a ``[preset]`` or a cue, each of its kind. Raises Wrong."""
    if not isinstance(settings, dict):
        raise FieldError("preset", "preset must be a table")
    told: dict[str, Any] = {}
    for key, value in settings.items():
        kind = _SETTINGS.get(key)
        if kind is None:
            raise FieldError(key, f"no setting is called {key!r}; there are {', '.join(_SETTINGS)}")
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise FieldError(key, f"{key} takes a {kind.__name__}, got {value!r}")
        told[key] = kind(value)
    return told


def timing(told: Mapping[str, Any]) -> Timing:
    """The timing that settings give. Raises BadValue."""
    names = {"fade": "length", "unit": "unit", "curve": "curve", "switch": "switch"}
    return Timing(**{names[key]: value for key, value in told.items() if key in names})


class Library:
    """The presets of several folders, later ones over earlier ones of the same name; the last folder is where they are saved.

    A broken file is one line in the log and in ``problems``, and the others load. ``poll`` reads again what was edited.
    """

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        self.folders = [own_folder()] if folders is None else list(folders)
        self.problems: dict[str, str] = {}
        self.presets: dict[str, Preset] = {}
        self._seen: dict[Path, tuple[int, int]] | None = None
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._shipped = _shipped()
        self.poll()

    def on_change(self, listener: Callable[[], None]) -> None:
        """``listener`` is called after presets came, went or changed."""
        self._listeners.append(listener)

    def poll(self) -> bool:
        """Reads the folders again where a file came, went or changed; whether that was so."""
        seen: dict[Path, tuple[int, int]] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*.toml"))[:MOST]:
                try:
                    stat = path.stat()
                except OSError:
                    continue
                seen[path] = (stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if seen == self._seen:
                return False
            before, self._seen = self._seen or {}, seen
            presets = dict(self._shipped)
            for path in seen:
                name = path.stem
                old = self.presets.get(name)
                if old is not None and old.path == path and before.get(path) == seen[path]:
                    presets[name] = old
                    continue
                try:
                    if not is_valid_name(name):
                        raise InvalidValue(
                            f"preset {name!r}: a name is of letters, digits, blanks, dots, dashes and underscores"
                        )
                    presets[name] = read(path, name)
                    self.problems.pop(name, None)
                except InvalidValue as error:
                    if old is not None:
                        presets[name] = old  # what was last right goes on
                    if self.problems.get(name) != str(error):
                        self.problems[name] = str(error)
                        log.error("%s", error)
            self.problems = {
                name: told for name, told in self.problems.items() if any(path.stem == name for path in seen)
            }
            self.presets = presets
        for listener in self._listeners:
            listener()
        return True

    @property
    def ordered(self) -> list[Preset]:
        """All of them: by number, then by name."""
        with self._lock:
            return sorted(
                self.presets.values(), key=lambda preset: (preset.number is None, preset.number or 0, preset.name)
            )

    def find(self, name: str) -> Preset:
        """The preset of that name or number. Raises BadValue."""
        with self._lock:
            found = self.presets.get(name.strip())
            if found is None and name.strip().isdigit():
                found = next((preset for preset in self.ordered if preset.number == int(name)), None)
        if found is None:
            names = ", ".join(preset.name for preset in self.ordered)
            raise InvalidValue(f"no preset {name[:80]!r}; there are {names[:400]}")
        return found

    def thumbnail(self, name: str) -> bytes | None:
        """The picture of a preset as a JPEG; None where there is none."""
        preset = self.presets.get(name)
        if preset is None:
            return None
        beside = (
            files("presets").joinpath("thumbnails", f"{name}.jpg")
            if preset.path is None
            else preset.path.with_suffix(".jpg")
        )
        try:
            return beside.read_bytes()
        except OSError:
            return None

    def save(self, name: str, values: Mapping[str, Value], picture: bytes | None = None) -> Path:
        """Writes the look in ``values`` as a preset into the last folder, over one of that name, with its picture. Raises BadValue."""
        name = name.strip()
        if not is_valid_name(name):
            raise InvalidValue(
                f"a preset is called by letters, digits, blanks, dots, dashes and underscores, got {name[:80]!r}"
            )
        if not self.folders:
            raise InvalidValue("there is no folder to save presets in")
        look = {row.name: values[row.name] for row in TABLE.values() if row.look and values[row.name] != row.default}
        path = self.folders[-1] / f"{name}.toml"
        settings: dict[str, Any] = {}
        before = self.presets.get(name)
        if before is not None:
            settings = {"number": before.number, "title": before.title, "fade": before.timing.length, "unit": before.timing.unit,
                        "curve": before.timing.curve, "switch": before.timing.switch, "model": before.model}  # fmt: skip
            settings = {key: value for key, value in settings.items() if value is not None}
        text = tomli_w.dumps(
            {key.strip("/"): value for key, value in look.items()} | ({"preset": settings} if settings else {})
        )
        try:
            self.folders[-1].mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
            if picture is not None:
                path.with_suffix(".jpg").write_bytes(picture)
        except OSError as error:
            raise InvalidValue(f"preset {name!r} cannot be saved in {self.folders[-1]}: {error.strerror}") from None
        self.poll()
        return path


def _shipped() -> dict[str, Preset]:
    """Those that come with Phosphene."""
    found = sorted(
        (path for path in files("presets").iterdir() if path.name.endswith(".toml")), key=lambda path: path.name
    )
    return {name: replace(read(path, name), path=None) for path in found for name in [path.name.removesuffix(".toml")]}


def listing(library: Library) -> str:
    """All presets as lines for people."""
    rows = [(str(p.number or ""), p.name, p.title, p.model, f"{p.timing.length:g} {p.timing.unit}" if p.timing.length else "")
            for p in library.ordered]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def load_preset(name: str, folders: Sequence[Path] | None = None) -> dict[str, Value]:
    """The values of the preset called ``name``, or of the file at that path. Raises BadValue where it is missing or wrong."""
    path = Path(name).expanduser()
    return dict(read(path, path.stem).values) if path.suffix == ".toml" else dict(Library(folders).find(name).values)
