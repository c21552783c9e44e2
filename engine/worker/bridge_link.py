"""The engine's end of the pipe to the bridge."""

from __future__ import annotations

from multiprocessing.connection import Connection

from engine.shared.messages import FromEngine, Stop
from engine.shared.snapshot import Snapshot


class BridgeLink:
    """Typed messages over the pipe. Every method raises an OSError or EOFError where the bridge is gone."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def newest(self) -> Snapshot | Stop | None:
        """Return the newest snapshot since the last call, None without one, or Stop."""
        newest: Snapshot | None = None
        while self._pipe.poll():
            message: Snapshot | Stop = self._pipe.recv()
            if isinstance(message, Stop):
                return message
            newest = message
        return newest

    def send(self, message: FromEngine) -> None:
        """Send a message to the bridge."""
        self._pipe.send(message)
