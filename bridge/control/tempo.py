"""Beat clock: tapped, set as a number, or synchronised. Everything that counts in beats reads it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from bridge.control.state import State

#: A tap after a longer pause starts a new count.
MAX_TAP_SECONDS = 2.0
#: MIDI clock after a longer pause starts a new count.
MAX_MIDI_CLOCK_SECONDS = 0.5
#: Number of intervals between taps that are averaged.
MAX_TAP_INTERVALS = 8
BEATS_PER_BAR = 4
MIDI_CLOCKS_PER_BEAT = 24


def phase_difference(beats: float, reference: float) -> float:
    """Return how far ``beats`` is ahead of ``reference`` within the bar, from -2 to below 2 beats."""
    return (beats - reference + BEATS_PER_BAR / 2) % BEATS_PER_BAR - BEATS_PER_BAR / 2


class Tempo:
    """Beats since the start, at the tempo of the parameter ``/tempo``, and continuous when that changes.

    ``clock`` returns monotonic seconds.
    """

    def __init__(self, state: State, clock: Callable[[], float] = time.perf_counter) -> None:
        self._state, self._clock = state, clock
        self._lock = threading.RLock()
        self._since, self._beats = clock(), 0.0
        self._bpm = state.snapshot().real("/tempo")
        self._taps: deque[float] = deque(maxlen=MAX_TAP_INTERVALS + 1)
        self._midi_clocks: deque[float] = deque(maxlen=2 * MIDI_CLOCKS_PER_BEAT + 1)
        self._midi_clock_count = 0
        state.on_change(self._follow)
        state.on_trigger("/tempo/tap", self.tap)
        state.on_trigger("/tempo/sync", self.sync)

    def beats(self, now: float | None = None) -> float:
        """Return the beats at ``now``; whole numbers lie on the beat."""
        with self._lock:
            return self._beats + ((self._clock() if now is None else now) - self._since) * self._bpm / 60.0

    def seconds(self, beats: float) -> float:
        """Return the duration of ``beats`` at the present tempo."""
        return beats * 60.0 / self._bpm

    def tap(self) -> None:
        """Put a beat at this moment. From the second tap on, the mean interval sets the tempo."""
        now = self._clock()
        with self._lock:
            if self._taps and now - self._taps[-1] > MAX_TAP_SECONDS:
                self._taps.clear()
            self._taps.append(now)
            taps = list(self._taps)
        if len(taps) > 1:
            self._state.set("/tempo", [60.0 * (len(taps) - 1) / (taps[-1] - taps[0])], "tap")
        self._set_beats(now, float(round(self.beats(now))))

    def sync(self) -> None:
        """Put the first beat of a bar at this moment."""
        now = self._clock()
        self._set_beats(now, float(BEATS_PER_BAR * round(self.beats(now) / BEATS_PER_BAR)))

    def align(self, beats: float, tolerance: float = 0.0) -> None:
        """Move to the nearest count with the phase of ``beats`` in the bar, if that is more than ``tolerance`` away."""
        now = self._clock()
        with self._lock:
            present = self.beats(now)
            difference = phase_difference(beats, present)
            if abs(difference) > tolerance:
                self._set_beats(now, present + difference)

    def start_midi_clock(self) -> None:
        """Handle MIDI start: put the first beat of a bar at this moment, and count MIDI clocks from here."""
        with self._lock:
            self._midi_clocks.clear()
            self._midi_clock_count = 0
        self.sync()

    def count_midi_clock(self) -> None:
        """Handle one MIDI clock, the 24th part of a beat, which sets tempo and beat."""
        now = self._clock()
        with self._lock:
            if self._midi_clocks and now - self._midi_clocks[-1] > MAX_MIDI_CLOCK_SECONDS:
                self._midi_clocks.clear()
                self._midi_clock_count = 0
            self._midi_clocks.append(now)
            self._midi_clock_count += 1
            times, count = list(self._midi_clocks), self._midi_clock_count
        if len(times) > MIDI_CLOCKS_PER_BEAT and count % MIDI_CLOCKS_PER_BEAT == 1:
            bpm = 60.0 / MIDI_CLOCKS_PER_BEAT * (len(times) - 1) / (times[-1] - times[0])
            if abs(bpm - self._bpm) > 0.05:
                self._state.set("/tempo", [bpm], "MIDI clock")
            self._set_beats(now, float(round(self.beats(now))))

    def _set_beats(self, now: float, beats: float) -> None:
        with self._lock:
            self._since, self._beats = now, beats

    def _follow(self) -> None:
        bpm = self._state.snapshot().real("/tempo")
        with self._lock:
            if bpm != self._bpm:
                now = self._clock()
                self._set_beats(now, self.beats(now))
                self._bpm = bpm
