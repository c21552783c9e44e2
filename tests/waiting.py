"""Wait for a condition in tests, and mark the tests that take long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

#: Length of the one-minute tests, in seconds.
MINUTE = float(os.environ.get("PHOSPHENE_MINUTE", "60"))
#: Marks long tests that add little to the others. They are deselected where PHOSPHENE_MINUTE is under 60.
thorough = pytest.mark.thorough


def until(condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> float:
    """Wait until ``condition`` is true; return the seconds it took. Fails after ``seconds``."""
    start = time.perf_counter()
    while not condition():
        assert time.perf_counter() - start < seconds, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.002)
    return time.perf_counter() - start
