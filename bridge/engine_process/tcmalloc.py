"""tcmalloc in the engine's process, where Linux has it installed: what oneDNN takes and frees at every operation costs less there.

For each convolution it makes many small objects that begin at a cache line, which glibc cuts out of larger ones one by one.
Nothing is done on Windows and macOS, where their own allocators were never compared with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Where Debian, Ubuntu, Fedora and Arch put it: libtcmalloc-minimal4, gperftools-libs, gperftools.
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
LIBRARY = "libtcmalloc_minimal.so.4"
_VARIABLE = "LD_PRELOAD"
#: It reports blocks from this size on, in bytes: of a model's weights nobody wants to read.
_REPORTS = {"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(1 << 40)}


def installed(folders: tuple[str, ...] = FOLDERS) -> Path | None:
    """Where it is; None where it is not, or another allocator has been chosen already."""
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get(_VARIABLE, ""):
        return None
    return next((path for folder in folders if (path := Path(folder, LIBRARY)).exists()), None)


@contextlib.contextmanager
def preloaded(library: Path | None) -> Iterator[None]:
    """Processes that are started inside have ``library``, if there is one."""
    before = dict(os.environ)
    if library is not None:
        os.environ.update(_environment(library))
    try:
        yield
    finally:
        for name in (_VARIABLE, *_REPORTS):
            _set(name, before.get(name))


def kept_to_itself() -> None:
    """To be called first in such a process: what it starts is as anywhere else."""
    others = [path for path in os.environ.get(_VARIABLE, "").split() if Path(path).name != LIBRARY]
    _set(_VARIABLE, " ".join(others) or None)


def begin_again(library: Path | None) -> None:
    """Starts this very command anew with ``library``, if there is one."""
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
