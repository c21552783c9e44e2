"""Cue lists: numbered cues as on a lighting desk, each a preset or values, with fade, delay and follow-on; go, back, goto, pause, release.

Cues track: what a cue does not set stays as the cues before it, from the first of the list, have left it. So a cue is the same picture by
whatever way it was reached.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.documents import Wrong, line_of, named, parsed
from bridge.fades import Fader, Timing
from bridge.presets import Library, checked, settled, timing
from engine.parameters import TABLE, BadValue, Value

#: Most cues of a list, and the longest delay or follow-on, in its unit.
MOST, LONGEST = 10_000, 86_400.0
#: Largest file, in bytes.
LARGEST = 1 << 20
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,3})?")
#: How a list is let go of.
RELEASE = Timing(1.0)
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
        raise BadValue(f"cue list {self.name!r} has no cue {number[:40]!r}")


def _plain(number: object) -> str:
    """A cue's number as text, ``1.50`` as ``1.5``. Raises BadValue."""
    text = f"{number:g}" if isinstance(number, float) else str(number).strip()
    if isinstance(number, bool) or not _NUMBER.fullmatch(text):
        raise BadValue(f"a cue is numbered as 1 or 1.5, got {text[:40]!r}")
    whole, _, part = text.partition(".")
    part = part.rstrip("0")
    return f"{int(whole)}.{part}" if part else str(int(whole))


def read_list(path: Any, name: str) -> CueList:
    """The cue list in a file or a resource. Raises BadValue with the cue and the line where they are known."""
    text, content = parsed(path, f"cue list {name!r}", LARGEST)
    entries = content.get("cue", [])
    odd = [key for key in content if key not in ("cue", "title")]
    if odd or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or len(entries) > MOST:
        raise BadValue(f"cue list {name!r} is a title and at most {MOST} tables [[cue]]{f', not {odd[0]!r}' if odd else ''}")
    cues: dict[str, Cue] = {}
    for place, entry in enumerate(entries, 1):
        try:
            cue = _cue(entry)
            if cue.number in cues:
                raise BadValue("its number is there twice")
        except BadValue as error:
            line = line_of(text, error.key) if isinstance(error, Wrong) else ""
            raise BadValue(f"cue list {name!r}, cue {entry.get('number', f'at place {place}')}{line}: {error}") from None
        cues[cue.number] = cue
    ordered = sorted(cues.values(), key=lambda cue: float(cue.number))
    title = content.get("title", "")
    return CueList(name, ordered, title if isinstance(title, str) else "")


def _cue(entry: Mapping[str, Any]) -> Cue:
    odd = next((key for key in entry if key not in _OWN), None)
    if odd is not None:
        raise Wrong(odd, f"no setting is called {odd!r}; there are {', '.join(_OWN)}")
    preset, values, title = entry.get("preset", ""), entry.get("values", {}), entry.get("title", "")
    for key, value in (("preset", preset), ("title", title)):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise Wrong(key, f"{key} takes text, got {value!r}")
    if not isinstance(values, dict):
        raise Wrong("values", "values must be a table")
    told = settled({key: entry[key] for key in ("fade", "unit", "curve", "switch") if key in entry})
    times: dict[str, float | None] = {}
    for key in ("delay", "follow"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST):
            raise Wrong(key, f"{key} takes a time from 0 to {LONGEST:g}, got {value!r}")
        times[key] = None if value is None else float(value)
    own = timing(told) if told.keys() - {"unit"} else None
    return Cue(_plain(entry.get("number", "")), str(title), str(preset), checked(values), own, told.get("unit", "seconds"),
               times["delay"] or 0.0, times["follow"])  # fmt: skip


@dataclass
class _Due:
    """Something that the list does by itself, at a point of the clock or of the beat clock."""

    at: float
    beats: bool
    what: Callable[[], None]


class Player:
    """Plays one cue list at a time. All of it may be called from any thread; ``tick`` is to be called often.

    ``folders`` hold lists under their names, one's own after those that are shipped.
    """

    def __init__(
        self, state: State, fader: Fader, tempo: Tempo, library: Library, folders: Sequence[Path] = (),
        clock: Callable[[], float] = time.monotonic, picture: Callable[[], bytes | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._state, self._fader, self._tempo, self._library, self._clock = state, fader, tempo, library, clock
        self.folders, self._picture = list(folders), picture
        self._lock = threading.RLock()
        self.list = CueList("", ())
        self._place = -1
        self._base: dict[str, Value] = {}
        self._due: list[_Due] = []
        self._paused_at: tuple[float, float] | None = None
        for name, handler in (("/cue/go", self.go), ("/cue/back", self.back), ("/cue/release", self.release), ("/panic", self.panic)):
            state.on_trigger(name, handler)
        state.on_command("/cue/goto", self.goto)
        state.on_command("/preset", self.recall)
        state.on_command("/preset/save", lambda name: self._save(name))
        state.on_set(self._follow)
        if state.snapshot().text("/cue/list"):
            self._load(state.snapshot().text("/cue/list"))

    @property
    def current(self) -> Cue | None:
        """The cue that was last started; None before the first and after a release."""
        return self.list.cues[self._place] if self._place >= 0 else None

    @property
    def next(self) -> Cue | None:
        """What ``go`` starts."""
        place = self._place + 1
        return self.list.cues[place] if place < len(self.list.cues) else None

    def names(self) -> list[str]:
        """Every list there is."""
        own = [path.stem for folder in self.folders for path in sorted(folder.glob("*.toml"))]
        return sorted({*_shipped(), *own})

    def go(self) -> None:
        """Starts the next cue, or lets a paused one go on."""
        with self._lock:
            if self._paused_at is not None:
                self._state.put({"/cue/pause": False})
            elif self.next is None:
                self._state.refuse(f"/cue/go: {'the list is at its end' if self.list.cues else 'no cue list is loaded'}", "cues")
            else:
                self._start(self._place + 1)

    def back(self) -> None:
        """Starts the cue before the present one."""
        with self._lock:
            if self._place <= 0:
                self._state.refuse("/cue/back: there is no cue before", "cues")
            else:
                self._start(self._place - 1)

    def goto(self, number: str) -> None:
        """Starts the cue of that number. Raises BadValue."""
        with self._lock:
            self._start(self.list.find(number))

    def release(self) -> None:
        """Lets go of the list: everything goes back to what it was before its first cue."""
        with self._lock:
            if self._place >= 0:
                self._resume()
                self._fader.start(self._base, RELEASE)
                self._place, self._due = -1, []

    def recall(self, name: str) -> None:
        """Fades to a preset, by its own timing or by ``/preset/fade`` where that is set. Raises BadValue."""
        preset = self._library.find(name)
        state = self._state.snapshot()
        length = state.real("/preset/fade")
        times = preset.timing if length < 0 else Timing(length, state.text("/preset/unit"), preset.timing.curve, preset.timing.switch)
        with self._lock:
            self._resume()
            self._due = []
            self._fader.start(preset.look, times)

    def panic(self) -> None:
        """Everything stops, and the safe look is there at once: ``/panic/preset``, or all defaults."""
        name = self._state.snapshot().text("/panic/preset")
        look = {row.name: row.default for row in TABLE.values() if row.look}
        try:
            if name:
                look |= self._library.find(name).look
        except BadValue as error:
            self._state.refuse(f"/panic: {error}; all defaults instead", "cues")
        clear: dict[str, Value] = {"/freeze": False, "/bypass": False, "/blackout": False, "/master": 1.0}
        with self._lock:
            self._resume()
            self._place, self._due = -1, []
            self._fader.start(look | clear, Timing())

    def tick(self, now: float | None = None) -> None:
        """Does what is due ``now``."""
        now = self._clock() if now is None else now
        with self._lock:
            if self._paused_at is not None:
                return
            beats = self._tempo.beats(now)
            for due in [due for due in self._due if (beats if due.beats else now) >= due.at]:
                if due in self._due:  # what came before it may have cleared the list
                    self._due.remove(due)
                    due.what()

    def status(self) -> dict[str, Any]:
        """What a panel or a desk wants to know of it."""
        with self._lock:
            current, following = self.current, self.next
            return {
                "list": self.list.name, "title": self.list.title, "paused": self._paused_at is not None, "fade": self._fader.share,
                "current": current.number if current else "", "next": following.number if following else "",
                "cues": [{"number": c.number, "title": c.title or c.preset} for c in self.list.cues],
            }  # fmt: skip

    def tracked(self, place: int) -> dict[str, Value]:
        """What the cues up to that place make together, over what was before the first. Raises BadValue for a preset that is not there."""
        values = dict(self._base)
        for cue in self.list.cues[: place + 1]:
            values |= self._own(cue)
        return values

    def _own(self, cue: Cue) -> dict[str, Value]:
        look = self._library.find(cue.preset).look if cue.preset else {}
        return look | dict(cue.values or {})

    def _start(self, place: int) -> None:
        cue = self.list.cues[place]
        if self._place < 0:
            state = self._state.snapshot()
            try:
                touched = {name for one in self.list.cues for name in self._own(one)}
            except BadValue:
                touched = {row.name for row in TABLE.values() if row.look}
            self._base = {name: state[name] for name in touched}
        try:
            values = self.tracked(place)
            times = cue.timing or (self._library.find(cue.preset).timing if cue.preset else Timing())
        except BadValue as error:
            self._state.refuse(f"cue {cue.number}: {error}", "cues")
            return
        self._resume()
        self._place, self._due = place, []
        if cue.delay:
            self._later(cue.delay, cue, lambda: self._fader.start(values, times))
        else:
            self._fader.start(values, times)
        if cue.follow is not None:
            self._later(cue.delay + cue.follow, cue, lambda: self._follow_on(place))

    def _follow_on(self, place: int) -> None:
        if self._place == place and self.next is not None:
            self._start(place + 1)

    def _later(self, wait: float, cue: Cue, what: Callable[[], None]) -> None:
        unit = cue.timing.unit if cue.timing is not None else cue.unit
        beats = unit == "beats"
        self._due.append(_Due((self._tempo.beats() if beats else self._clock()) + wait, beats, what))

    def _save(self, name: str) -> None:
        self._library.save(name, dict(self._state.snapshot()), self._picture())

    def _load(self, name: str) -> None:
        with self._lock:
            try:
                self.list = located(name, self.folders)
            except BadValue as error:
                self._state.refuse(str(error), "cues")
                return
            self._place, self._due = -1, []

    def _resume(self) -> None:
        if self._paused_at is not None:
            self._state.put({"/cue/pause": False})

    def _follow(self, names: frozenset[str], _by: str) -> None:
        if "/cue/list" in names:
            self._load(self._state.snapshot().text("/cue/list"))
        if "/cue/pause" in names:
            with self._lock:
                on = self._state.snapshot().flag("/cue/pause")
                self._fader.hold(on)
                if on and self._paused_at is None:
                    self._paused_at = self._clock(), self._tempo.beats()
                elif not on and self._paused_at is not None:
                    passed = self._clock() - self._paused_at[0], self._tempo.beats() - self._paused_at[1]
                    for due in self._due:
                        due.at += passed[due.beats]
                    self._paused_at = None


def _shipped() -> dict[str, Any]:
    return {path.name.removesuffix(".toml"): path for path in files("presets").joinpath("cues").iterdir() if path.name.endswith(".toml")}


def located(name: str, folders: Sequence[Path]) -> CueList:
    """The cue list called ``name``; no name is an empty list. Raises BadValue."""
    if not name:
        return CueList("", ())
    if not named(name):
        raise BadValue(f"a cue list is called by letters, digits, blanks, dots, dashes and underscores, got {name[:80]!r}")
    found = _shipped() | {path.stem: path for folder in folders for path in folder.glob("*.toml")}
    if name not in found:
        raise BadValue(f"no cue list {name!r}; there are {', '.join(sorted(found))}")
    return read_list(found[name], name)
