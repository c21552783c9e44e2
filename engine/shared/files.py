"""Files: new names, atomic writes, and a watcher that reloads the changed files of a folder."""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from engine.shared.user_files import check_regular

T = TypeVar("T")
#: Characters of a file's name that its temporary file repeats: a file system limits a name to 255 bytes.
MAX_STEM_LENGTH = 40
#: Time to list a folder from which it rests, this many times as long.
LONG_LISTING_SECONDS, REST_SHARE = 0.02, 20
#: Errors that say nothing about a folder: the process or the system has no descriptor or no memory left.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def create_new(path: Path, mode: int = 0o666) -> int:
    """Create an empty file and return its descriptor. A link at ``path`` is not followed.

    Raises FileExistsError if anything is there, another OSError if the file cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, mode)


def claim_new(path: Path, first: int = 1) -> Path:
    """Create an empty file and return its path: ``take.mp4`` or, where that exists, ``take-2.mp4``, ``take-3.mp4`` …

    No other process can claim the same name. ``first`` is the number to start at. Raises OSError.
    """
    for number in itertools.count(first):
        candidate = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            os.close(create_new(candidate))
        except FileExistsError:
            continue
        except PermissionError:
            if os.path.isdir(candidate):  # Windows reports an existing folder so
                continue
            raise
        return candidate
    raise AssertionError


def check_replaceable(path: Path) -> None:
    """Check that ``path`` is a regular file or free. Raises OSError for a link, a folder, a pipe or a device."""
    if os.path.islink(path):
        raise OSError(errno.EINVAL, "a link, not a regular file", str(path))
    try:
        check_regular(path)
    except FileNotFoundError:
        pass


def temporary_name(path: Path) -> Path:
    """Return a hidden name next to ``path``, with its suffix, that no file has."""
    return path.with_name(f".{path.stem[:MAX_STEM_LENGTH]}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def temporary_files(path: Path) -> list[Path]:
    """Return the temporary files of ``path``, those of killed processes included. Raises OSError."""
    stem, suffix = re.escape(path.stem[:MAX_STEM_LENGTH]), re.escape(path.suffix)
    pattern = re.compile(rf"\.{stem}\.\d+(-[0-9a-f]{{8}})?{suffix}")
    with os.scandir(path.parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if pattern.fullmatch(entry.name) and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
        ]


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a new, empty temporary file in the same folder; rename it to ``path`` on success, delete it on error.

    It has the suffix of ``path``. Readers see the old file or the new one, never a part of either. Raises OSError.
    """
    temporary = temporary_name(path)
    os.close(create_new(temporary))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def create_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary file as ``replace_atomically`` does, for a free name. Raises FileExistsError if it is not."""
    with replace_atomically(path) as temporary:
        yield temporary
        os.close(create_new(path))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` through ``replace_atomically``. Raises OSError."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@dataclass(frozen=True)
class FolderScan(Generic[T]):
    """What a scan of a folder has found: the times and sizes of its files, and their entries."""

    stamps: dict[Path, tuple[int, int]]
    entries: dict[Path, T]


class FolderWatcher(Generic[T]):
    """Load the files that ``list_files`` returns, and load a file again when its time or size changes.

    ``load(path, previous)`` returns the entry of a file; ``previous`` is the entry before the change, None for a new
    file. ``entries`` maps each path to its entry, in the order of ``list_files``. A scan loads no further files after
    ``seconds``. A folder whose scan takes long, such as one of a hundred thousand files, is scanned less often.
    """

    def __init__(
        self,
        list_files: Callable[[], Iterable[Path]],
        load: Callable[[Path, T | None], T],
        seconds: float = math.inf,
    ) -> None:
        self._list_files, self._load, self._seconds = list_files, load, seconds
        self._rest_until = 0.0
        self._stamps: dict[Path, tuple[int, int]] = {}
        self.entries: dict[Path, T] = {}

    def poll(self) -> bool:
        """Read the folder once. Return True if a file came, went or changed."""
        return self.accept(self.scan())

    def scan(self) -> FolderScan[T] | None:
        """Read the folder once and return what it holds now, None for nothing new. The watcher stays as it is.

        Files that are left after ``seconds`` keep their entries; the next scan loads them.
        """
        start = time.perf_counter()
        if start < self._rest_until:
            return None
        before, entries = self._stamps, self.entries
        stamps: dict[Path, tuple[int, int]] = {}
        loaded: dict[Path, T] = {}
        try:
            paths = self.list_files()
        except OSError as error:
            if error.errno in SHORTAGES:  # the files are still there
                return None
            raise
        listed = time.perf_counter()
        if listed - start > LONG_LISTING_SECONDS:
            self._rest_until = listed + REST_SHARE * (listed - start)
        for path in paths:
            try:
                stat = path.stat()
            except (OSError, ValueError):  # deleted between listing and stat, or a link to nothing
                continue
            stamp = (stat.st_mtime_ns, stat.st_size)
            if before.get(path) == stamp:
                stamps[path], loaded[path] = stamp, entries[path]
            elif time.perf_counter() - start < self._seconds:
                stamps[path], loaded[path] = stamp, self._load(path, entries.get(path))
            elif path in entries:
                stamps[path], loaded[path] = before[path], entries[path]
        return None if stamps == before else FolderScan(stamps, loaded)

    def accept(self, scan: FolderScan[T] | None) -> bool:
        """Take over what a scan has found. Return False for None."""
        if scan is None:
            return False
        self._stamps, self.entries = scan.stamps, scan.entries
        return True

    def list_files(self) -> list[Path]:
        """Return the files to load now; a folder that cannot be listed has none. Raises OSError for a shortage."""
        try:
            return list(self._list_files())
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return []
