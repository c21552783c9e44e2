"""Frame rate, latency and gaps of the output."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from engine.shared.frame import Frame

#: Length of the window over which rates are measured, in seconds.
WINDOW_SECONDS = 2.0
#: Frames that are remembered for the window.
MAX_FRAMES = 512
#: A longer time between two pictures is a gap that an audience may notice, in seconds.
GAP_SECONDS = 0.1


class OutputRates(NamedTuple):
    """New frames a second and their median latency in milliseconds, texture in to texture out; frames in total.

    ``gap_ms`` is the longest time between two pictures, also repeated ones; ``gaps`` counts those over GAP_SECONDS.
    """

    fps: float
    latency_ms: float
    frames: int
    gap_ms: float
    gaps: int


class FrameRateMeter:
    """Counts transformed frames, and the gaps between the pictures that are sent."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, float]] = deque(maxlen=MAX_FRAMES)
        self._sent: deque[tuple[float, float]] = deque(maxlen=MAX_FRAMES)
        self._sent_at = 0.0
        self.frames = self.gaps = 0

    def record(self, frame: Frame) -> None:
        """Count a transformed frame that came out of the engine now."""
        now = time.perf_counter()
        self._events.append((now, now - frame.captured_at))
        self.frames += 1

    def record_sent(self) -> None:
        """Note that a picture, new or repeated, was sent to the sinks now."""
        now = time.perf_counter()
        gap = now - self._sent_at if self._sent_at else 0.0
        self._sent_at = now
        self._sent.append((now, gap))
        self.gaps += gap > GAP_SECONDS

    def rates(self) -> OutputRates:
        """Return the rates at this moment."""
        now = time.perf_counter()
        gaps = [gap for moment, gap in list(self._sent) if now - moment < WINDOW_SECONDS]
        recent = [event for event in list(self._events) if now - event[0] < WINDOW_SECONDS]
        latencies = sorted(event[1] for event in recent)
        return OutputRates(
            fps=len(recent) / WINDOW_SECONDS,
            latency_ms=latencies[len(latencies) // 2] * 1000 if latencies else 0.0,
            frames=self.frames,
            gap_ms=max([*gaps, now - self._sent_at if self._sent_at else 0.0]) * 1000,
            gaps=self.gaps,
        )
