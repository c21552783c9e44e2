"""Waiting in tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

#: Length of the tests of a minute, in seconds.
MINUTE = float(os.environ.get("PHOSPHENE_MINUTE", "60"))
#: For long tests that check little that no other does: deselected where PHOSPHENE_MINUTE is under 60.
thorough = pytest.mark.thorough


def until(condition: Callable[[], object], seconds: float = 10.0, what: str = "it") -> float:
    """Waits for ``condition``; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.002)
    return time.monotonic() - start
