"""The file of a session: whether a path may be one, and the lock that keeps a second show from it."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path

from engine.shared.files import check_replaceable
from engine.shared.user_files import open_regular

#: How a session file begins: the checksum of the rest, then JSON.
_HEADER = re.compile(rb"[0-9a-f]{64}\n\{")
HEADER_BYTES = 66
#: Errors of file systems that have no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EROFS, errno.ENOSPC}
#: Time for a show that was killed to be gone, in seconds.
LOCK_SECONDS, RETRY_SECONDS = 2.0, 0.05


def check_session_file(path: Path, any_content: bool = False) -> None:
    """Check that a show may save its session to ``path`` and to the ``.old`` next to it.

    Raises OSError for a folder, a link, a pipe or a device, and for a file that holds anything but a session; what a
    loss of power leaves, no bytes or zeros, counts as one. ``any_content`` accepts any regular file.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise OSError(errno.ENOTDIR, f"{path.parent} is not a folder")
    if not path.name:
        raise OSError(errno.EISDIR, "a folder, not a regular file")
    for candidate in (path, path.with_suffix(".old")):
        try:
            check_replaceable(candidate)
            if not any_content and candidate.exists() and not _looks_like_session(candidate):
                raise OSError(errno.EINVAL, "not a session file; it is not replaced")
        except OSError as error:
            where = "" if candidate == path else f"{candidate}, where its previous version goes, is "
            raise OSError(error.errno, f"{where}{error.strerror}") from None


def _looks_like_session(path: Path) -> bool:
    with open_regular(path) as file:
        data = file.read(HEADER_BYTES)
    return bool(_HEADER.match(data)) or not data.strip(b"\0")


class SessionLock:
    """A lock that the system releases when its process ends, in any way. The file next to the session stays."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Return whether the session is this process's now; True also where the file system has no locks."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT
            for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
                flags |= getattr(os, name, 0)
            self._descriptor = os.open(self._path, flags, 0o600)
        except OSError:  # such as a read-only disk; saving reports it
            return True
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return True
        deadline = time.perf_counter() + LOCK_SECONDS
        while True:
            try:
                _lock(self._descriptor)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return True
                if time.perf_counter() > deadline:
                    self.release()
                    return False
                time.sleep(RETRY_SECONDS)
            else:
                return True

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    """Lock a file without waiting. Raises OSError if another process has it locked."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
