"""The files that the engine imports, read from the disk ahead of it: after a boot it would wait for each of thousands in turn.

The reserve notes them once it has imported everything; the next start has the system read them on a thread of the bridge's, while the
engine is still busy with the first. Where there is no posix_fadvise, as on Windows and macOS, nothing is done.
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

#: Larger ones, in bytes, are libraries, of which only parts are needed and which the system reads ahead by itself.
LARGEST = 2_000_000


def kept() -> Path:
    """Where the files of this installation are noted."""
    name = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return user_cache_path("phosphene", appauthor=False) / f"imported-{name}.txt"


def note(files: Iterable[Path]) -> None:
    """Notes the ``files``, in the order in which they are needed. Where that cannot be written nothing is noted."""
    if not _able():
        return
    path = kept()
    unfinished = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text("\n".join(map(str, files)), encoding="utf-8")
        unfinished.replace(path)


def begin() -> threading.Thread | None:
    """Has the system read what was noted; None where nothing was."""
    if not _able() or not kept().exists():
        return None
    thread = threading.Thread(target=_read, name="readahead", daemon=True)
    thread.start()
    return thread


def _able() -> bool:
    return hasattr(os, "posix_fadvise")


def _read() -> None:
    with contextlib.suppress(OSError, UnicodeError):
        for path in kept().read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size <= LARGEST:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
