"""What the frame loop makes of an exception: which kind it is, and how often one may happen."""

from __future__ import annotations

import gc

import torch

from engine.runtime.allocator import trim_heap

#: Failed frames in a row after which the process gives up, and after which something is done about it.
MAX_FAILURES, MITIGATE_AFTER = 20, 3
_DEVICE_ERRORS = ("CUDA error", "cuDNN error", "HIP error")


class EngineFailure(Exception):
    """The engine cannot go on in this process."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the machine ran out of memory."""
    is_memory_error = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_memory_error or ("memory" in str(error) and "alloc" in str(error))


def is_device_lost(error: Exception) -> bool:
    """Return whether the device no longer answers this process: only a new process gets it back."""
    is_device_error = type(error).__name__ == "AcceleratorError" or any(name in str(error) for name in _DEVICE_ERRORS)
    return is_device_error and not is_out_of_memory(error)


def free_memory() -> None:
    """Return what nothing uses any more to the device and to the system."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
