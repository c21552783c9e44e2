"""The beat clock: tapped, set as a number, or brought into step; everything that counts in beats asks it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from bridge.control.state import State

#: Taps that are further apart than this begin a new count, in seconds.
PAUSE = 2.0
#: Intervals between taps that are averaged.
TAPS = 8
#: Beats in a bar: ``/tempo/sync`` is the first of one.
BAR = 4
#: Clocks of MIDI in a beat.
PARTS = 24


class Tempo:
    """Beats since the start, from the parameter ``/tempo``: continuous where that changes. ``clock`` gives monotonic seconds."""

    def __init__(self, state: State, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._clock = state, clock
        self._lock = threading.RLock()
        self._since, self._beats = clock(), 0.0
        self._bpm = state.snapshot().real("/tempo")
        self._taps: deque[float] = deque(maxlen=TAPS + 1)
        self._ticks: deque[float] = deque(maxlen=2 * PARTS + 1)
        self._count = 0
        state.on_change(self._follow)
        state.on_trigger("/tempo/tap", self.tap)
        state.on_trigger("/tempo/sync", self.sync)

    def beats(self, now: float | None = None) -> float:
        """Beats passed at ``now``, whole numbers on the beat."""
        with self._lock:
            return self._beats + ((self._clock() if now is None else now) - self._since) * self._bpm / 60.0

    def seconds(self, beats: float) -> float:
        """How long ``beats`` last at the present tempo."""
        return beats * 60.0 / self._bpm

    def tap(self) -> None:
        """A beat is now; from the second on, the taps' mean interval is the tempo."""
        now = self._clock()
        with self._lock:
            if self._taps and now - self._taps[-1] > PAUSE:
                self._taps.clear()
            self._taps.append(now)
            taps = list(self._taps)
        if len(taps) > 1:
            self._state.set("/tempo", [60.0 * (len(taps) - 1) / (taps[-1] - taps[0])], "tap")
        self._move(now, float(round(self.beats(now))))

    def sync(self) -> None:
        """The first beat of a bar is now."""
        now = self._clock()
        self._move(now, float(BAR * round(self.beats(now) / BAR)))

    def align(self, beats: float, apart: float = 0.0) -> None:
        """Another clock is at ``beats`` now: ours goes to the nearest count at that place in the bar, unless that is within ``apart``."""
        now = self._clock()
        with self._lock:
            ours = self.beats(now)
            off = (beats - ours + BAR / 2) % BAR - BAR / 2
            if abs(off) > apart:
                self._move(now, ours + off)

    def start(self) -> None:
        """MIDI's start: the first beat of a bar is now, and its clock counts from here."""
        with self._lock:
            self._ticks.clear()
            self._count = 0
        self.sync()

    def clock(self) -> None:
        """MIDI's clock: the 24th part of a beat has passed. Tempo and beat follow what comes in."""
        now = self._clock()
        with self._lock:
            if self._ticks and now - self._ticks[-1] > PAUSE / 4:
                self._ticks.clear()
                self._count = 0
            self._ticks.append(now)
            self._count += 1
            ticks, count = list(self._ticks), self._count
        if len(ticks) > PARTS and count % PARTS == 1:
            bpm = 60.0 / PARTS * (len(ticks) - 1) / (ticks[-1] - ticks[0])
            if abs(bpm - self._bpm) > 0.05:
                self._state.set("/tempo", [bpm], "MIDI clock")
            self._move(now, float(round(self.beats(now))))

    def _move(self, now: float, beats: float) -> None:
        with self._lock:
            self._since, self._beats = now, beats

    def _follow(self) -> None:
        bpm = self._state.snapshot().real("/tempo")
        with self._lock:
            if bpm != self._bpm:
                now = self._clock()
                self._move(now, self.beats(now))
                self._bpm = bpm
