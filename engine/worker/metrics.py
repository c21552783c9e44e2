"""Rates and times of the frame loop."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from engine.shared.frame import Frame


class Metrics:
    """Ticks, times and rates of the last seconds."""

    def __init__(self, every: float = 0.5) -> None:
        self._every, self._next = every, time.monotonic() + every
        self._ticks: deque[tuple[float, float, int]] = deque(maxlen=240)
        self.frames = self.ticks = 0

    def tick(self, start: float, finished: list[Frame] | None) -> None:
        """One tick that began at ``start`` and gave ``finished`` (None: skipped)."""
        now, count = time.monotonic(), len(finished or ())
        self.ticks += 1
        self.frames += count
        if finished is not None:
            self._ticks.append((now, now - start, count))

    def due(self) -> bool:
        """True once every ``every`` seconds."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every
        return True

    def report(self) -> dict[str, Any]:
        """fps over the last 2 s, the median tick in milliseconds, and totals."""
        now = time.monotonic()
        recent = [entry for entry in self._ticks if now - entry[0] < 2.0]
        times = sorted(entry[1] for entry in recent)
        return {
            "fps": sum(entry[2] for entry in recent) / 2.0,
            "tick_ms": times[len(times) // 2] * 1000 if times else 0.0,
            "frames": self.frames,
            "ticks": self.ticks,
            "cpu_s": time.process_time(),
        }
