"""Files: atomic writes, and a watcher that reloads the changed files of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, delete it on error.

    It has the suffix of ``path``. Readers see the old file or the new one, never a part of either. Raises OSError.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` through ``replace_atomically``. Raises OSError."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


class FolderWatcher(Generic[T]):
    """Load the files that ``list_files`` returns, and load a file again when its time or size changes.

    ``load(path, previous)`` returns the entry of a file; ``previous`` is the entry before the change, None for a new
    file. ``entries`` maps each path to its entry, in the order of ``list_files``.
    """

    def __init__(self, list_files: Callable[[], Iterable[Path]], load: Callable[[Path, T | None], T]) -> None:
        self._list_files, self._load = list_files, load
        self._stamps: dict[Path, tuple[int, int]] = {}
        self.entries: dict[Path, T] = {}

    def poll(self) -> bool:
        """Read the folder once. Return True if a file came, went or changed."""
        stamps: dict[Path, tuple[int, int]] = {}
        for path in self.list_files():
            try:
                stat = path.stat()
            except OSError:  # deleted between listing and stat
                continue
            stamps[path] = (stat.st_mtime_ns, stat.st_size)
        if stamps == self._stamps:
            return False
        before, entries = self._stamps, self.entries
        self.entries = {
            path: entries[path] if before.get(path) == stamp else self._load(path, entries.get(path))
            for path, stamp in stamps.items()
        }
        self._stamps = stamps
        return True

    def list_files(self) -> list[Path]:
        """Return the files to load now; a folder that cannot be listed has none."""
        try:
            return list(self._list_files())
        except OSError:
            return []
