"""The cue player: go, back, goto, pause, release and panic.

Cues track, as on a lighting desk: a parameter that a cue does not set has its value from the previous cues of the list.
So a cue always gives the same picture, however it is reached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader, Timing
from bridge.performance.cue_list import Cue, CueLibrary, CueList
from bridge.performance.preset_file import coerce_values
from bridge.performance.presets import PresetLibrary
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE

RELEASE_TIMING = Timing(1.0)
#: Values that a panic sets on top of its preset, so that the output is visible.
PANIC_VALUES: Mapping[str, Value] = {"/freeze": False, "/bypass": False, "/blackout": False, "/master": 1.0}
#: Actions that wait for a list which is read for the first time.
MAX_WAITING_ACTIONS = 100


@dataclass
class _Scheduled:
    """An action due ``at`` a time in seconds, or on the beat clock if ``beats``."""

    at: float
    beats: bool
    action: Callable[[], None]


class CuePlayer:
    """Plays one cue list at a time. Every method is safe to call from any thread. Call ``tick`` for every frame.

    ``folders`` hold the user's cue lists, which override shipped ones of the same name. ``clock`` returns monotonic
    seconds. ``capture`` returns the thumbnail of a preset that is saved, as a JPEG.
    """

    def __init__(
        self,
        state: State,
        crossfader: Crossfader,
        tempo: Tempo,
        presets: PresetLibrary,
        folders: Sequence[Path] = (),
        clock: Callable[[], float] = time.perf_counter,
        capture: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._state, self._crossfader, self._tempo, self._presets = state, crossfader, tempo, presets
        self._clock, self._capture = clock, capture
        self.lists = CueLibrary(folders, presets.reader)
        self._lock = threading.RLock()
        self.list = CueList("", ())
        self._index = -1
        #: Values from before the first cue, of every parameter that the list sets.
        self._base: dict[str, Value] = {}
        self._schedule: list[_Scheduled] = []
        self._paused_at: tuple[float, float] | None = None  # seconds, beats
        #: The list that is read for the first time, and what was asked of it meanwhile.
        self._loading = ""
        self._waiting: list[Callable[[], None]] = []
        for name, handler in (
            ("/cue/go", self.go),
            ("/cue/back", self.back),
            ("/cue/release", self.release),
            ("/panic", self.panic),
        ):
            state.on_trigger(name, handler)
        state.on_command("/cue/goto", self.goto)
        state.on_command("/preset", self.recall)
        state.on_command("/preset/save", self._save)
        state.on_set(self._on_set)
        if state.snapshot().text("/cue/list"):
            self._load(state.snapshot().text("/cue/list"))

    @property
    def current(self) -> Cue | None:
        """The cue that started last; None before the first and after a release."""
        return self.list.cues[self._index] if self._index >= 0 else None

    @property
    def next(self) -> Cue | None:
        """The cue that ``go`` starts."""
        index = self._index + 1
        return self.list.cues[index] if index < len(self.list.cues) else None

    def names(self) -> list[str]:
        """Return the names of all cue lists."""
        return self.lists.names

    def go(self) -> None:
        """Start the next cue, or continue a paused one."""
        with self._lock:
            if self._postpone(self.go):
                return
            if self._paused_at is not None:
                self._state.put({"/cue/pause": False})
            elif self.next is None:
                reason = "the list is at its end" if self.list.cues else "no cue list is loaded"
                self._state.reject(f"/cue/go: {reason}", "cues")
            else:
                self._start(self._index + 1)

    def back(self) -> None:
        """Start the previous cue."""
        with self._lock:
            if self._postpone(self.back):
                return
            if self._index <= 0:
                self._state.reject("/cue/back: there is no previous cue", "cues")
            else:
                self._start(self._index - 1)

    def goto(self, number: str) -> None:
        """Start the cue with that number. Raises InvalidValue."""
        with self._lock:
            if not self._postpone(lambda: self.goto(number)):
                self._start(self.list.find(number))

    def release(self) -> None:
        """Leave the list: fade everything back to its value from before the first cue."""
        with self._lock:
            if self._postpone(self.release):
                return
            if self._index >= 0:
                self._resume()
                self._crossfader.start(self._base, RELEASE_TIMING)
                self._index, self._schedule = -1, []

    def recall(self, name: str) -> None:
        """Fade to a preset, in the length of ``/preset/fade`` or, where that is negative, by the preset's own timing.

        Raises InvalidValue.
        """
        preset = self._presets.find(name)
        with self._lock:
            if self._waiting and self._postpone(lambda: self.recall(name)):  # after the cue before it
                return
        state = self._state.snapshot()
        length = state.real("/preset/fade")
        timing = (
            preset.timing
            if length < 0
            else Timing(length, state.text("/preset/unit"), preset.timing.curve, preset.timing.switch)
        )
        with self._lock:
            self._resume()
            self._schedule = []
            self._crossfader.start(preset.recall_values, timing)

    def panic(self) -> None:
        """Stop everything and set the preset ``/panic/preset`` at once, or all defaults."""
        name = self._state.snapshot().text("/panic/preset")
        values = {row.name: row.default for row in TABLE.values() if row.is_part_of_look}
        try:
            if name:
                values |= self._presets.find(name).recall_values
        except InvalidValue as error:
            self._state.reject(f"/panic: {error}; all defaults instead", "cues")
        with self._lock:
            self._resume()
            self._index, self._schedule, self._waiting = -1, [], []
            self._crossfader.start(values | dict(PANIC_VALUES), Timing())

    def tick(self, now: float | None = None) -> None:
        """Run the actions that are due ``now``."""
        now = self._clock() if now is None else now
        with self._lock:
            if self._paused_at is not None:
                return
            beats = self._tempo.beats(now)
            for entry in [entry for entry in self._schedule if (beats if entry.beats else now) >= entry.at]:
                if entry in self._schedule:  # an action before it may have cleared the schedule
                    self._schedule.remove(entry)
                    entry.action()

    def status(self) -> dict[str, Any]:
        """Return list, current and next cue as JSON types, for panels and desks."""
        with self._lock:
            current, following = self.current, self.next
            return {
                "list": self.list.name,
                "title": self.list.title,
                "paused": self._paused_at is not None,
                "fade": self._crossfader.progress,
                "current": current.number if current else "",
                "next": following.number if following else "",
                "cues": [{"number": cue.number, "title": cue.title or cue.preset} for cue in self.list.cues],
            }

    def position(self) -> dict[str, Any]:
        """Return the position in the list as JSON types, for the saved session."""
        with self._lock:
            return {
                "list": self.list.name,
                "cue": self.current.number if self.current else "",
                "base": dict(self._base),
            }

    def restore(self, position: Mapping[str, Any]) -> None:
        """Restore what ``position`` returned, without starting a cue. An invalid position is refused and logged."""
        with self._lock:
            try:
                base = coerce_values(position.get("base") or {})
                if position.get("list") == self.list.name and position.get("cue"):
                    self._index, self._base = self.list.find(str(position["cue"])), base
            except (InvalidValue, AttributeError) as error:
                self._state.reject(f"the position in the cue list is not restored: {error}", "session")

    def tracked_values(self, index: int) -> dict[str, Value]:
        """Return the values after the cues up to ``index``, over the values from before the first.

        Raises InvalidValue if a preset is missing.
        """
        values = dict(self._base)
        for cue in self.list.cues[: index + 1]:
            values |= self._values_of(cue)
        return values

    def _values_of(self, cue: Cue) -> dict[str, Value]:
        """Return the values that a cue itself sets."""
        preset_values = self._presets.find(cue.preset).recall_values if cue.preset else {}
        return preset_values | dict(cue.values or {})

    def _start(self, index: int) -> None:
        cue = self.list.cues[index]
        if self._index < 0:
            self._remember_base()
        try:
            values = self.tracked_values(index)
            timing = cue.timing or (self._presets.find(cue.preset).timing if cue.preset else Timing())
        except InvalidValue as error:
            self._state.reject(f"cue {cue.number}: {error}", "cues")
            return
        self._resume()
        self._index, self._schedule = index, []
        if cue.delay:
            self._run_later(cue.delay, cue, lambda: self._crossfader.start(values, timing))
        else:
            self._crossfader.start(values, timing)
        if cue.follow is not None:
            self._run_later(cue.delay + cue.follow, cue, lambda: self._follow_on(index))

    def _remember_base(self) -> None:
        """Store the present values of every parameter that the list sets."""
        state = self._state.snapshot()
        try:
            names = {name for cue in self.list.cues for name in self._values_of(cue)}
        except InvalidValue:  # a preset is missing
            names = {row.name for row in TABLE.values() if row.is_part_of_look}
        self._base = {name: state[name] for name in names}

    def _follow_on(self, index: int) -> None:
        if self._index == index and self.next is not None:
            self._start(index + 1)

    def _run_later(self, wait: float, cue: Cue, action: Callable[[], None]) -> None:
        beats = (cue.timing.unit if cue.timing is not None else cue.unit) == "beats"
        now = self._tempo.beats() if beats else self._clock()
        self._schedule.append(_Scheduled(now + wait, beats, action))

    def _save(self, name: str) -> None:
        reject = self._state.reject
        self._presets.save(
            name, dict(self._state.snapshot()), self._capture(), lambda reason: reject(reason, "presets")
        )

    def _load(self, name: str) -> None:
        """Use the list as it was last read, at once, and then as it is now unless a cue of it has started.

        Of a list that was not read yet, whose file may be new or mended, actions wait until it is.
        """
        with self._lock:
            self._loading, self._waiting = name, []
            with suppress(InvalidValue):
                self._use(self.lists.find(name))
                self._loading = ""
        self.lists.poll(lambda: self._update(name), key="load")

    def _update(self, name: str) -> None:
        with self._lock:
            try:
                cues = self.lists.find(name)
                if self._state.snapshot().text("/cue/list") == name and (self._index < 0 or self.list.name != name):
                    self._use(cues)
            except InvalidValue as error:
                self._state.reject(str(error), "cues")
            if self._loading != name:
                return
            actions, self._loading, self._waiting = self._waiting, "", []
            for action in actions:
                try:
                    action()
                except InvalidValue as error:
                    self._state.reject(str(error), "cues")

    def _postpone(self, action: Callable[[], None]) -> bool:
        """Let an action wait for the list that is read for the first time. Return False if there is none."""
        if self._loading and len(self._waiting) < MAX_WAITING_ACTIONS:
            self._waiting.append(action)
        return bool(self._loading)

    def _use(self, cues: CueList) -> None:
        with self._lock:
            if cues is not self.list:
                self.list, self._index, self._schedule = cues, -1, []

    def _resume(self) -> None:
        if self._paused_at is not None:
            self._state.put({"/cue/pause": False})

    def _on_set(self, names: frozenset[str], _by: str) -> None:
        if "/cue/list" in names:
            self._load(self._state.snapshot().text("/cue/list"))
        if "/cue/pause" in names:
            self._follow_pause()

    def _follow_pause(self) -> None:
        """Pause the fade and the schedule, or continue them from where they stopped, as ``/cue/pause`` says."""
        with self._lock:
            on = self._state.snapshot().flag("/cue/pause")
            self._crossfader.hold(on)
            if on and self._paused_at is None:
                self._paused_at = self._clock(), self._tempo.beats()
            elif not on and self._paused_at is not None:
                seconds, beats = self._clock() - self._paused_at[0], self._tempo.beats() - self._paused_at[1]
                for entry in self._schedule:
                    entry.at += beats if entry.beats else seconds
                self._paused_at = None
