"""Memory of a device: what is free, and when the allocator's cache is returned to it.

The cache holds freed memory for the next tensors of the running stream. Returning it costs that stream hundreds of
allocations by the driver, each of which waits for the device. Not run on a GPU yet.
"""

from __future__ import annotations

import psutil
import torch

from engine.runtime.device import empty_cache

#: Free memory below which a CUDA device counts as short of it: another program draws on the same card.
RESERVE_BYTES = 2 << 30


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that can still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def is_short(device: torch.device, needed_bytes: float = RESERVE_BYTES) -> bool:
    """Return whether a CUDA device has less than ``needed_bytes`` free; any other one returns memory by itself.

    A device that does not say how much is free counts as short.
    """
    if device.type != "cuda":
        return False
    try:
        return free_memory_bytes(device) < needed_bytes
    except (RuntimeError, AssertionError):  # a lost device, or a torch without CUDA
        return True


def release_cache(device: torch.device, needed_bytes: float = RESERVE_BYTES) -> bool:
    """Return the allocator's cache to a CUDA device that has less than ``needed_bytes`` free; return whether it had."""
    if not is_short(device, needed_bytes):
        return False
    empty_cache()
    return True
