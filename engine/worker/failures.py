"""What the frame loop makes of an exception: how often one may happen, and the memory that it leaves."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from math import inf

import torch

from engine.runtime.allocator import trim_heap
from engine.runtime.cuda_streams import NotFinite
from engine.runtime.device_errors import is_device_lost, is_out_of_memory
from engine.runtime.device_lock import device_lock
from engine.runtime.device_memory import RESERVE_BYTES, release_cache
from engine.shared.errors import first_line

__all__ = ["EngineFailure", "FailureCounter", "free_memory", "is_device_lost", "is_out_of_memory"]
log = logging.getLogger(__name__)
#: Failed frames in a row after which the process gives up, and after which something is done about it.
MAX_FAILURES, MITIGATE_AFTER = 20, 3
#: Time over which frames with NaN are counted, in seconds: those that overflow come one by one.
NAN_WINDOW_SECONDS = 60.0


class EngineFailure(Exception):
    """The engine cannot go on in this process."""


class FailureCounter:
    """Failed frames: ``in_a_row``, and those with NaN over the last minute, with good ones in between.

    ``was_reported`` is whether the failures since the last good frame were reported to the user.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._not_finite: deque[float] = deque(maxlen=MAX_FAILURES)
        self.in_a_row = 0
        self.was_reported = False

    def add(self, error: Exception) -> int:
        """Count a failed frame. Return which one of its kind it is: in a row, or within a minute for NaN."""
        self.in_a_row += 1
        if not isinstance(error, NotFinite):
            return self.in_a_row
        now = self._clock()
        while self._not_finite and now - self._not_finite[0] > NAN_WINDOW_SECONDS:
            self._not_finite.popleft()
        self._not_finite.append(now)
        return len(self._not_finite)

    def clear(self) -> None:
        """Start again after a good frame."""
        self.in_a_row, self.was_reported = 0, False


def free_memory(is_exhausted: bool = False) -> None:
    """Return what nothing uses any more to the system, and to a CUDA device where that is short of memory.

    ``is_exhausted`` says that it has just run out. Never raises: it runs beside frames that work, and a device that is
    lost fails the next one.
    """
    gc.collect()
    trim_heap()
    try:
        if torch.cuda.is_available():
            release_cache(torch.device("cuda"), inf if is_exhausted else RESERVE_BYTES)
        if torch.backends.mps.is_available():
            with device_lock(torch.device("mps")):
                torch.mps.empty_cache()
    except RuntimeError as error:  # as torch raises after a failed capture of a CUDA graph
        log.warning("memory of the device is not freed: %s", first_line(error))
