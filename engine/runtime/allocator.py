"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import functools
import sys

#: For glibc's mallopt: blocks from this size on are mapped one by one; what is free at the heap's end is given back above this.
_MAPPED, _TRIMMED = (-3, 32 << 20), (-1, 256 << 20)


def retain_freed_memory() -> bool:
    """Lets this process keep up to 256 MiB that it has freed, where the C library is glibc; whether it is.

    Every frame frees the tensors that it made and makes them again. Left to itself glibc hands them back to the system in between, or not,
    by where they happen to lie: then each is mapped anew, page by page, hundreds of times a frame.
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(*_MAPPED) and library.mallopt(*_TRIMMED))


def trim_heap() -> None:
    """Hands what is freed back to the system once, after something large went; where the C library is glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
        if hasattr(library, "MallocExtension_ReleaseFreeMemory"):  # tcmalloc in glibc's place
            library.MallocExtension_ReleaseFreeMemory()


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
