"""Frame rate and latency of the output."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from engine.shared.frame import Frame

#: Length of the window over which rates are measured, in seconds.
WINDOW_SECONDS = 2.0
#: Frames that are remembered for the window.
MAX_FRAMES = 512


class OutputRates(NamedTuple):
    """New frames a second and their median latency in milliseconds, texture in to texture out; frames in total."""

    fps: float
    latency_ms: float
    frames: int


class FrameRateMeter:
    """Counts transformed frames."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, float]] = deque(maxlen=MAX_FRAMES)
        self.frames = 0

    def record(self, frame: Frame) -> None:
        """Count a transformed frame that came out of the engine now."""
        now = time.monotonic()
        self._events.append((now, now - frame.captured_at))
        self.frames += 1

    def rates(self) -> OutputRates:
        """Return the rates at this moment."""
        now = time.monotonic()
        recent = [event for event in list(self._events) if now - event[0] < WINDOW_SECONDS]
        latencies = sorted(event[1] for event in recent)
        return OutputRates(
            fps=len(recent) / WINDOW_SECONDS,
            latency_ms=latencies[len(latencies) // 2] * 1000 if latencies else 0.0,
            frames=self.frames,
        )
