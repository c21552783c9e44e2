"""A pipe that holds as little as on Windows and macOS, for tests on Linux."""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import Connection

#: What multiprocessing asks for on Windows, and a socket pair holds on macOS, in bytes.
SMALL_PIPE_BYTES = 8192


def shrink_pipe(pipe: Connection) -> None:
    """Let ``pipe``, one end of ``multiprocessing.Pipe()``, hold at most 8 KiB that the other end has not read."""
    if os.name == "nt":
        return
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_PIPE_BYTES // 2)  # Linux doubles it
