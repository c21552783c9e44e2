"""The console: standard output and error that may be closed, full, unread, or without a glyph for what is written.

None of that may raise, and none of it may hold a show up. Uses the standard library alone: ``bootstrap`` needs it.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
import os
import select
import sys
from typing import Any, TextIO

#: Bytes that a pipe takes at once wherever it takes any: PIPE_BUF, 4096 on Linux and at least 512 in POSIX.
CHUNK_BYTES = 4096 if sys.platform.startswith("linux") else 512
#: Spellings of the characters that we write ourselves, for encodings without them.
SPELLINGS = {
    "…": "...", "→": "->", "←": "<-", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+-", "≤": "<=", "≥": ">=",
    "·": ".", "’": "'", "“": '"', "”": '"', "°": " deg", "²": "^2",
}  # fmt: skip
_ERRORS = "phosphene_spell"
#: Windows: the console that standard output writes to, and its mode of following escape codes.
STD_OUTPUT_HANDLE, ENABLE_VIRTUAL_TERMINAL_PROCESSING = -11, 0x0004


def spell(error: UnicodeError) -> tuple[str, int]:
    r"""Spell a character that an encoding lacks: ``->`` for an arrow, ``\u0416`` for what has no spelling."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    spelled = (SPELLINGS.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in text)
    return "".join(spelled), error.end


def configure() -> None:
    """Make standard output and error take any text, also where they are closed. To be called first in a process."""
    codecs.register_error(_ERRORS, spell)
    _open_closed_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _open_closed_descriptors() -> None:
    """Open the null device where standard input, output or error is closed: the next socket would take its number."""
    with contextlib.suppress(OSError):
        descriptor = os.open(os.devnull, os.O_RDWR)
        while descriptor <= 2:
            os.set_inheritable(descriptor, True)
            descriptor = os.open(os.devnull, os.O_RDWR)
        os.close(descriptor)


def enable_escape_codes() -> bool:
    """Return whether standard output is a terminal that follows escape codes. On Windows, switch them on.

    The console of Windows 10 prints them as text otherwise; older ones cannot do anything else. Not run on
    Windows yet.
    """
    if not sys.stdout.isatty():
        return False
    if sys.platform != "win32":
        return True
    try:
        kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.GetStdHandle.restype = ctypes.c_void_p
        kernel32.GetConsoleMode.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        kernel32.SetConsoleMode.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        handle, mode = kernel32.GetStdHandle(STD_OUTPUT_HANDLE), ctypes.c_uint32()
        if not kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
            return False
        return bool(kernel32.SetConsoleMode(handle, mode.value | ENABLE_VIRTUAL_TERMINAL_PROCESSING))
    except (OSError, AttributeError):
        return False


def write(stream: TextIO, text: str) -> None:
    """Write ``text`` at once, or drop it where nobody reads the pipe or terminal. Raises OSError.

    Nothing is left in a buffer, which would be written, and fail, once more at the end of the process.
    """
    descriptor = _descriptor_of(stream)
    if descriptor is None:
        stream.write(text)
        stream.flush()
        return
    with contextlib.suppress(OSError):
        stream.flush()  # what print has left there, so that the order stays
    data = text.encode(stream.encoding, stream.errors or "strict")
    while data and select.select([], [descriptor], [], 0)[1]:
        data = data[os.write(descriptor, data[:CHUNK_BYTES]) :]


def _descriptor_of(stream: TextIO) -> int | None:
    """Return the descriptor to write to; None where only the stream itself can: on Windows, and in tests."""
    if sys.platform == "win32" or not isinstance(stream, io.TextIOWrapper):
        return None
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def discard_output() -> None:
    """Send what is still buffered for standard output, and all that follows, to the null device."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
