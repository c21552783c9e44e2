"""Rate limit for log lines that can repeat at frame rate."""

from __future__ import annotations

import time


class RateLimit:
    """Passes ``burst`` events in ``seconds``, and counts those it suppresses."""

    def __init__(self, burst: int = 5, seconds: float = 5.0) -> None:
        self._burst, self._seconds = burst, seconds
        self._window_start, self._passed, self._suppressed = 0.0, 0, 0

    def passes(self) -> tuple[bool, int]:
        """Return whether this event may be logged, and how many were suppressed before it."""
        now = time.monotonic()
        if now - self._window_start > self._seconds:
            self._window_start, self._passed = now, 0
        if self._passed >= self._burst:
            self._suppressed += 1
            return False, 0
        self._passed += 1
        suppressed, self._suppressed = self._suppressed, 0
        return True, suppressed
