"""Cue lists, played: go, back, goto, pause, release, panic.

Cues track: what a cue does not set stays as the cues before it, from the first of the list, have left it. So a cue is the same picture by
whatever way it was reached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader, Timing
from bridge.performance.cue_list import Cue, CueList, located, shipped
from bridge.performance.presets import Library, checked
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE

#: How a list is let go of.
RELEASE = Timing(1.0)


@dataclass
class _Due:
    """Something that the list does by itself, at a point of the clock or of the beat clock."""

    at: float
    beats: bool
    what: Callable[[], None]


class CuePlayer:
    """Plays one cue list at a time. All of it may be called from any thread; ``tick`` is to be called often.

    ``folders`` hold lists under their names, one's own after those that are shipped.
    """

    def __init__(
        self, state: State, fader: Crossfader, tempo: Tempo, library: Library, folders: Sequence[Path] = (),
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
        for name, handler in (
            ("/cue/go", self.go),
            ("/cue/back", self.back),
            ("/cue/release", self.release),
            ("/panic", self.panic),
        ):
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
        return sorted({*shipped(), *own})

    def go(self) -> None:
        """Starts the next cue, or lets a paused one go on."""
        with self._lock:
            if self._paused_at is not None:
                self._state.put({"/cue/pause": False})
            elif self.next is None:
                self._state.reject(
                    f"/cue/go: {'the list is at its end' if self.list.cues else 'no cue list is loaded'}", "cues"
                )
            else:
                self._start(self._place + 1)

    def back(self) -> None:
        """Starts the cue before the present one."""
        with self._lock:
            if self._place <= 0:
                self._state.reject("/cue/back: there is no cue before", "cues")
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
        times = (
            preset.timing
            if length < 0
            else Timing(length, state.text("/preset/unit"), preset.timing.curve, preset.timing.switch)
        )
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
        except InvalidValue as error:
            self._state.reject(f"/panic: {error}; all defaults instead", "cues")
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

    def standing(self) -> dict[str, Any]:
        """Where the list stands, for a journal."""
        with self._lock:
            return {
                "list": self.list.name,
                "cue": self.current.number if self.current else "",
                "base": dict(self._base),
            }

    def stand(self, told: Mapping[str, Any]) -> None:
        """Goes to where ``standing`` told, without starting anything. What is not there any more, or no longer so, is passed over."""
        with self._lock:
            try:
                base = checked(told.get("base") or {})
                if told.get("list") == self.list.name and told.get("cue"):
                    self._place, self._base = self.list.find(str(told["cue"])), base
            except (InvalidValue, AttributeError) as error:
                self._state.reject(f"the cue list does not go on where it stood: {error}", "journal")

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
            except InvalidValue:
                touched = {row.name for row in TABLE.values() if row.look}
            self._base = {name: state[name] for name in touched}
        try:
            values = self.tracked(place)
            times = cue.timing or (self._library.find(cue.preset).timing if cue.preset else Timing())
        except InvalidValue as error:
            self._state.reject(f"cue {cue.number}: {error}", "cues")
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
            except InvalidValue as error:
                self._state.reject(str(error), "cues")
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
