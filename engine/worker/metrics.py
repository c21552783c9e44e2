"""Rates and times of the frame loop."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from engine.shared.frame import Frame

#: Length of the window over which rates are measured, in seconds.
WINDOW_SECONDS = 2.0
#: Ticks that are remembered for the window.
MAX_TICKS = 240


class Rates(NamedTuple):
    """Frames a second and the median tick in milliseconds over the window; totals; processor time in seconds."""

    fps: float
    tick_ms: float
    frames: int
    ticks: int
    cpu_s: float


class Metrics:
    """Counts ticks and frames. ``report_seconds`` is the time between two reports."""

    def __init__(self, report_seconds: float = 0.5) -> None:
        self._report_seconds, self._next_report = report_seconds, time.perf_counter() + report_seconds
        self._ticks: deque[tuple[float, float, int]] = deque(maxlen=MAX_TICKS)
        self.frames = self.ticks = 0

    def tick(self, start: float, finished: list[Frame] | None) -> None:
        """Count a tick that began at ``start`` and returned ``finished`` (None: skipped)."""
        now, count = time.perf_counter(), len(finished or ())
        self.ticks += 1
        self.frames += count
        if finished is not None:
            self._ticks.append((now, now - start, count))

    def due(self) -> bool:
        """Return True when it is time for the next report."""
        now = time.perf_counter()
        if now < self._next_report:
            return False
        self._next_report = now + self._report_seconds
        return True

    def rates(self) -> Rates:
        """Return the rates at this moment."""
        now = time.perf_counter()
        recent = [entry for entry in self._ticks if now - entry[0] < WINDOW_SECONDS]
        times = sorted(entry[1] for entry in recent)
        return Rates(
            fps=sum(entry[2] for entry in recent) / WINDOW_SECONDS,
            tick_ms=times[len(times) // 2] * 1000 if times else 0.0,
            frames=self.frames,
            ticks=self.ticks,
            cpu_s=time.process_time(),
        )
