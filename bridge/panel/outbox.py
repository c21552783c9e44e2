"""What one WebSocket is still to be sent: the newest of each kind, so that a slow reader holds up nobody but itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

Pending = dict[str, Any]


class Outbox:
    """Sends updates to ``socket`` one after the other. Belongs to the event loop.

    While one is being sent the next ones are merged by ``merge(pending, update)``; ``encode`` returns the messages of
    what has come together. A client that reads nothing costs that and no more.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        encode: Callable[[Pending], Iterable[str | bytes]],
        merge: Callable[[Pending, Mapping[str, Any]], None] = dict.update,
    ) -> None:
        self._socket, self._encode, self._merge = socket, encode, merge
        self._pending: Pending = {}
        self._task: asyncio.Task[None] | None = None

    def put(self, update: Mapping[str, Any]) -> None:
        """Send an update as soon as the client takes it; returns at once."""
        if not update:
            return
        self._merge(self._pending, update)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())

    def close(self) -> None:
        """Drop what has not been sent."""
        self._pending = {}
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # the client has gone
            while self._pending:
                pending, self._pending = self._pending, {}
                for message in self._encode(pending):
                    if isinstance(message, bytes):
                        await self._socket.send_bytes(message)
                    else:
                        await self._socket.send_str(message)
