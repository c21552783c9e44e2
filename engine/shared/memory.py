"""Shared memory for frames: as much as the system has, reserved where that is little, freed after a crash.

Linux keeps it in /dev/shm, of which Docker gives a container 64 MiB. A block takes memory page by page as it is
written, and a process that writes a page that is not there any more is killed without a word (SIGBUS).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import NamedTuple

from engine.shared.parameter import InvalidValue

FOLDER = Path("/dev/shm")
#: Start of the names of our blocks.
PREFIX = "psm_phosphene_"
#: Side of the smallest frames that shared memory must have room for: the default working size.
MIN_SIDE = 256
#: A block is reserved where less than this many times all blocks is free.
AMPLE = 4
#: Fraction of the free memory that is left to others, such as the semaphores of Python.
SPARE = 1 / 16
HINT = "enlarge it, in Docker with `docker run --shm-size=256m`"


class Space(NamedTuple):
    """The size and the free part of the system's shared memory, in bytes."""

    size: int
    free: int


def measure_space() -> Space | None:
    """Return the space for shared memory; None where the system has no limit of its own for it, or does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        stat = os.statvfs(FOLDER)
    except OSError:
        return None
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize) if stat.f_blocks else None


class Block:
    """A block of shared memory that this process creates, and frees in ``close``.

    ``reserve`` takes all its pages now. Raises OSError where there is not enough.
    """

    def __init__(self, size: int, reserve: bool = False) -> None:
        self._lock: int | None = None
        if not sys.platform.startswith("linux"):
            self.memory = SharedMemory(create=True, size=size)
            return
        self.memory = SharedMemory(PREFIX + secrets.token_hex(6), create=True, size=size)
        try:
            self._lock = _lock(FOLDER / self.memory.name, exclusive=False)
            if reserve:
                _reserve(self._lock, size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Detach from the block and free it."""
        self.memory.close()
        with contextlib.suppress(FileNotFoundError):
            self.memory.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def free_abandoned_blocks() -> None:
    """Free the blocks of processes that were killed together with Python's resource tracker, which does it otherwise.

    A living process holds a lock on each of its blocks.
    """
    if not sys.platform.startswith("linux"):
        return
    for path in FOLDER.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = _lock(path, exclusive=True)
            path.unlink(missing_ok=True)
            os.close(lock)


def _lock(path: Path, exclusive: bool) -> int:
    """Return a descriptor that holds a lock on the file until it is closed. Raises OSError.

    A shared lock waits for the instant that an exclusive one lasts; the exclusive one does not wait.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        if not os.fstat(descriptor).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "taken for an abandoned block by another start; try again")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Take all pages of a block. Raises OSError where there are not as many."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot promise them
            raise


def choose_side(blocks: int, bytes_per_pixel: int, working_size: tuple[int, int], max_side: int) -> tuple[int, bool]:
    """Return the side of the largest square frame that ``blocks`` blocks have room for, and whether to reserve them.

    The side is at most ``max_side``. Raises InvalidValue where a frame of ``working_size``, or of MIN_SIDE², does not
    fit.
    """
    space, (width, height) = measure_space(), working_size
    if space is None or space.free >= AMPLE * blocks * bytes_per_pixel * max_side**2:
        return max_side, False
    pixels = int(space.free * (1 - SPARE)) // (blocks * bytes_per_pixel)
    side = min(max_side, int(pixels**0.5) // 8 * 8)
    if side < MIN_SIDE:
        raise InvalidValue(f"{describe(space)}, too little for frames of {MIN_SIDE}x{MIN_SIDE}; {HINT}")
    if width * height > side**2:
        raise InvalidValue(
            f"{describe(space)}, too little for /size {width}x{height}; {HINT}, or choose a smaller size"
        )
    return side, True


def describe(space: Space) -> str:
    """Return the space for people."""
    used = "" if space.free > 0.9 * space.size else f", {space.free / 2**20:.0f} MiB of them free"
    return f"{FOLDER} has {space.size / 2**20:.0f} MiB{used}"
