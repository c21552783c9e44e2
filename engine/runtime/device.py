"""The device of a thread: CUDA has a current one for each thread, and a new thread begins on the first.

Not run on a GPU yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from engine.runtime.threads import limit_to_one_thread

#: Held while a CUDA graph is captured: two captures at once invalidate each other, and torch raises an error where the
#: allocator's cache is emptied meanwhile.
CAPTURE_LOCK = threading.Lock()


def use_device(device: torch.device) -> None:
    """Make ``device`` the current one of the calling thread. Call it first in every thread and process that uses it.

    Otherwise streams, events and graphs of a thread are on ``cuda:0``, whatever device the model is on.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def enter_background_thread(device: torch.device) -> None:
    """Prepare the calling thread for work on ``device`` alongside the frame loop: on one core, and on that device."""
    limit_to_one_thread()
    use_device(device)


def inherit_device() -> Callable[[], None]:
    """Return what a new background thread calls first, to be on one core and on the device of the present thread."""
    index = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def enter() -> None:
        limit_to_one_thread()
        if index is not None:
            torch.cuda.set_device(index)

    return enter


def empty_cache() -> None:
    """Return the memory that torch's allocator has cached to the CUDA devices; not while a graph is captured.

    It never waits: the cache serves whatever is allocated next.
    """
    if CAPTURE_LOCK.acquire(blocking=False):
        try:
            torch.cuda.empty_cache()
        finally:
            CAPTURE_LOCK.release()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
