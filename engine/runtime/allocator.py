"""The C allocator: retain freed memory between frames, and return it to the system after a large object is gone."""

from __future__ import annotations

import ctypes
import functools
import sys

#: Parameter of glibc's mallopt, and its value: blocks from this many bytes on are mapped one by one.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20
#: The same: free memory at the heap's end beyond this many bytes is returned to the system.
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 256 << 20


def retain_freed_memory() -> bool:
    """Let this process retain up to 256 MiB of freed memory. Return whether that works, which needs glibc.

    Every frame frees its tensors and allocates the same ones again. Depending on where they lie, glibc returns them to
    the system in between. Then each is mapped anew, page by page, hundreds of times per frame.
    """
    library = _glibc()
    if library is None or not library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES):
        return False
    return bool(library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


def trim_heap() -> None:
    """Return freed memory to the system once, after a large object is gone. Does nothing without glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
        if hasattr(library, "MallocExtension_ReleaseFreeMemory"):  # tcmalloc is preloaded
            library.MallocExtension_ReleaseFreeMemory()


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return this process's C library if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
