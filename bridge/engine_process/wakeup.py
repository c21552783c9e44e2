"""A signal from any thread to one that waits on connections, for ``multiprocessing.connection.wait``."""

from __future__ import annotations

import threading
from multiprocessing.context import BaseContext


class Wakeup:
    """Set by any thread without ever blocking, waited for on ``reader``, cleared by the waiting thread."""

    def __init__(self, context: BaseContext) -> None:
        self.reader, self._writer = context.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._is_set = False

    def set(self) -> None:
        """Make ``reader`` ready. At most one message is ever in the pipe, so this never blocks."""
        with self._lock:
            if not self._is_set:
                self._is_set = True
                self._writer.send_bytes(b"\0")

    def clear(self) -> None:
        """Make ``reader`` not ready. A ``set`` after this call is seen by the next wait."""
        with self._lock:
            if self._is_set:
                self.reader.recv_bytes()
                self._is_set = False
