"""Kinds of exceptions of a device: out of memory, or lost."""

from __future__ import annotations

import torch

_DEVICE_ERRORS = ("CUDA error", "cuDNN error", "HIP error")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the machine ran out of memory."""
    is_memory_error = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_memory_error or ("memory" in str(error) and "alloc" in str(error))


def is_device_lost(error: BaseException) -> bool:
    """Return whether the device no longer answers this process: only a new process gets it back."""
    is_device_error = type(error).__name__ == "AcceleratorError" or any(name in str(error) for name in _DEVICE_ERRORS)
    return is_device_error and not is_out_of_memory(error)
