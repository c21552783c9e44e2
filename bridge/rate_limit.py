"""A limit for log lines that can repeat at frame rate."""

from __future__ import annotations

import time


class RateLimit:
    """Lets ``burst`` events through in ``seconds``, counts the rest and tells how many there were."""

    def __init__(self, burst: int = 5, seconds: float = 5.0) -> None:
        self._burst, self._seconds = burst, seconds
        self._since, self._passed, self._held = 0.0, 0, 0

    def passes(self) -> tuple[bool, int]:
        """Whether this event may be shown, and how many were held back before it."""
        now = time.monotonic()
        if now - self._since > self._seconds:
            self._since, self._passed = now, 0
        if self._passed >= self._burst:
            self._held += 1
            return False, 0
        self._passed += 1
        held, self._held = self._held, 0
        return True, held
