"""Reads the files that the engine imports ahead of it: after a boot it would wait for thousands of them in turn.

A standby records them once it has imported everything. At the next start a thread of the bridge has the system read
them, while the engine is busy with the first ones. Systems without posix_fadvise, such as Windows and macOS, do
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_cache_path

from engine.shared.files import write_atomically

#: Larger files are libraries: only parts of them are needed, and the system reads those ahead by itself.
MAX_FILE_BYTES = 2_000_000


def list_path() -> Path:
    """Return the file that lists the imports of this installation."""
    name = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return user_cache_path("phosphene", appauthor=False) / f"imported-{name}.txt"


def record(files: Iterable[Path]) -> None:
    """Record ``files`` in the order of their import; where the list cannot be written nothing is recorded."""
    if not _is_supported():
        return
    path = list_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "\n".join(map(str, files)))


def start() -> threading.Thread | None:
    """Start reading what was recorded; return the thread, None where nothing was."""
    if not _is_supported() or not list_path().exists():
        return None
    thread = threading.Thread(target=_prefetch, name="import-prefetch", daemon=True)
    thread.start()
    return thread


def _is_supported() -> bool:
    return hasattr(os, "posix_fadvise")


def _prefetch() -> None:
    with contextlib.suppress(OSError, UnicodeError):
        for path in list_path().read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
