"""Frame rate and latency of the output."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from engine.shared.frame import Frame


class FrameRateMeter:
    """Rates and latencies of new output frames over the last two seconds."""

    WINDOW = 2.0

    def __init__(self) -> None:
        self._events: deque[tuple[float, float]] = deque(maxlen=512)
        self.frames = 0

    def new(self, frame: Frame) -> None:
        """A transformed frame came out of the engine."""
        now = time.monotonic()
        self._events.append((now, now - frame.captured_at))
        self.frames += 1

    def report(self) -> dict[str, Any]:
        """``fps``, median ``latency_ms`` from texture in to texture out, and the total of ``frames``."""
        now = time.monotonic()
        recent = [event for event in list(self._events) if now - event[0] < self.WINDOW]
        latencies = sorted(event[1] for event in recent)
        return {
            "fps": len(recent) / self.WINDOW,
            "latency_ms": latencies[len(latencies) // 2] * 1000 if latencies else 0.0,
            "frames": self.frames,
        }
