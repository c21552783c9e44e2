"""tcmalloc in the engine process, where Linux has it installed: oneDNN's allocations at every operation cost less.

For each convolution oneDNN makes many small objects aligned to cache lines. glibc cuts them out of larger blocks one
by one. Nothing is done on Windows and macOS, whose allocators were never compared with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Where Debian, Ubuntu, Fedora and Arch install it: libtcmalloc-minimal4, gperftools-libs, gperftools.
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
LIBRARY = "libtcmalloc_minimal.so.4"
_VARIABLE = "LD_PRELOAD"
#: Smallest allocation that tcmalloc reports on the terminal, in bytes: larger than any model's weights.
_REPORTS = {"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(1 << 40)}


def find_library(folders: tuple[str, ...] = FOLDERS) -> Path | None:
    """Return the library's path; None where it is missing, or another allocator has been chosen."""
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get(_VARIABLE, ""):
        return None
    return next((path for folder in folders if (path := Path(folder, LIBRARY)).exists()), None)


@contextlib.contextmanager
def preload(library: Path | None) -> Iterator[None]:
    """Preload ``library``, if there is one, into the processes that are started inside."""
    before = dict(os.environ)
    if library is not None:
        os.environ.update(_environment(library))
    try:
        yield
    finally:
        for name in (_VARIABLE, *_REPORTS):
            _set(name, before.get(name))


def forget_preload() -> None:
    """Remove the library from the environment, so that child processes start without it. To be called first."""
    others = [path for path in os.environ.get(_VARIABLE, "").split() if Path(path).name != LIBRARY]
    _set(_VARIABLE, " ".join(others) or None)


def restart_with(library: Path | None) -> None:
    """Replace this process by the same command with ``library`` preloaded, if there is one."""
    if library is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | _environment(library))


def _environment(library: Path) -> Mapping[str, str]:
    return {_VARIABLE: f"{library} {os.environ.get(_VARIABLE, '')}".strip(), **_REPORTS}


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
