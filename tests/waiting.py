"""Waiting in tests."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 10.0, what: str = "it") -> float:
    """Waits for ``condition``; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.002)
    return time.monotonic() - start
