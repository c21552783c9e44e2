"""Rate limit for log lines that can repeat at frame rate."""

from __future__ import annotations

import logging
import time

from engine.shared.errors import first_line


class RateLimit:
    """Passes ``burst`` events in ``seconds``, and counts those it suppresses."""

    def __init__(self, burst: int = 5, seconds: float = 5.0) -> None:
        self._burst, self._seconds = burst, seconds
        self._window_start, self._passed, self._suppressed = 0.0, 0, 0

    def passes(self) -> tuple[bool, int]:
        """Return whether this event may be logged, and how many were suppressed before it."""
        now = time.perf_counter()
        if now - self._window_start > self._seconds:
            self._window_start, self._passed = now, 0
        if self._passed >= self._burst:
            self._suppressed += 1
            return False, 0
        self._passed += 1
        suppressed, self._suppressed = self._suppressed, 0
        return True, suppressed


class OneLine(logging.Filter):
    """Passes records of a library at a limited rate, each as one line that ends in what was raised."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RateLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        passes, suppressed = self._limit.passes()
        if not passes:
            return False
        text = record.getMessage()
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            text += f": {type(error).__name__}: {first_line(error, 200)}"
        if suppressed:
            text += f" ({suppressed} similar messages suppressed)"
        record.msg, record.args, record.exc_info, record.exc_text = text, None, None, None
        return True
