"""The engine's end of the pipe to the bridge."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection

from engine.shared.messages import FromEngine, Received, Stop, ToEngine, WatchRegions
from engine.shared.snapshot import Snapshot


class BridgeLink:
    """Typed messages over the pipe. Every method raises an OSError or EOFError where the bridge is gone.

    A thread receives and acknowledges each snapshot at once, so that the bridge always sends the newest: the next one
    waits for no tick.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._newest: Snapshot | Stop | None = None
        #: Whether a panel shows which regions are computed.
        self.watches_regions = False
        self._error: Exception | None = None
        self._lock, self._send_lock = threading.Lock(), threading.Lock()
        threading.Thread(target=self._receive, name="bridge messages", daemon=True).start()

    def newest(self) -> Snapshot | Stop | None:
        """Return the newest snapshot since the last call, None without one, or Stop, after which nothing counts."""
        with self._lock:
            newest = self._newest
            if not isinstance(newest, Stop):
                self._newest = None
        if newest is None and self._error is not None:
            raise self._error
        return newest

    def send(self, message: FromEngine) -> None:
        """Send a message to the bridge, from any thread."""
        with self._send_lock:
            self._pipe.send(message)

    def _receive(self) -> None:
        try:
            while True:
                message: ToEngine = self._pipe.recv()
                if isinstance(message, WatchRegions):
                    self.watches_regions = message.is_on
                    continue
                with self._lock:
                    if not isinstance(self._newest, Stop):
                        self._newest = message
                if isinstance(message, Snapshot):
                    self.send(Received(message.number))
        except Exception as error:  # mostly that the bridge is gone
            self._error = error


def take_lines(notes: list[str]) -> list[str]:
    """Return the lines of ``notes`` and remove them; another thread may append meanwhile."""
    lines = notes[:]
    del notes[: len(lines)]
    return lines
