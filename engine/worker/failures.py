"""What the frame loop makes of an exception: how often one may happen, and the memory that it leaves."""

from __future__ import annotations

import gc

import torch

from engine.runtime.allocator import trim_heap
from engine.runtime.device_errors import is_device_lost, is_out_of_memory

__all__ = ["EngineFailure", "free_memory", "is_device_lost", "is_out_of_memory"]
#: Failed frames in a row after which the process gives up, and after which something is done about it.
MAX_FAILURES, MITIGATE_AFTER = 20, 3


class EngineFailure(Exception):
    """The engine cannot go on in this process."""


def free_memory() -> None:
    """Return what nothing uses any more to the device and to the system."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
