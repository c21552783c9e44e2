"""The connections of the panel's port: accepted within a quota, and closed where no request comes.

They are counted before anything of them is parsed, so that half requests without end cannot take what others need.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler

from bridge.network.quota import Quota, is_loopback
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
#: Time for the header of the first request, and between two requests, in seconds.
HEADER_SECONDS, IDLE_SECONDS = 10.0, 30.0
#: Time between two looks at what is overdue, and the pause after a failure, in seconds.
SWEEP_SECONDS, RETRY_SECONDS = 1.0, 0.2


@dataclass(eq=False)
class _Connection:
    """A connection; ``requests`` are being handled now, ``since`` is when that number last changed."""

    transport: asyncio.BaseTransport
    host: str
    requests: int = 0
    has_request: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> float:
        """When it is closed unless a request comes."""
        if self.requests:
            return float("inf")
        return self.since + (IDLE_SECONDS if self.has_request else HEADER_SECONDS)


class Connections:
    """Accepts connections on ``listener`` for a server of aiohttp. Belongs to the event loop.

    Where there is no place left, a new connection replaces the one that has been without a request for longest: of the
    same machine, or else of the same kind, this machine or others. Requests that are being handled are never cut.
    """

    def __init__(self, listener: socket.socket, limit: int) -> None:
        self._listener, self._quota, self._limit = listener, Quota(limit), RateLimit()
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    async def serve(self, server: web.Server) -> None:
        """Accept connections until the task is cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        sweep = loop.create_task(self._sweep())
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                    await self._admit(server, connection, str(address[0]))
                except OSError as error:  # no descriptor left: that may pass
                    if self._limit.passes()[0]:
                        log.error("panel: a connection could not be accepted (%s)", error.strerror or error)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            sweep.cancel()
            self._listener.close()

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a request is being handled, for as long as it is."""
        connection = self._open.get(request.transport) if request.transport is not None else None
        if connection is None:
            return await handler(request)
        connection.has_request, connection.requests = True, connection.requests + 1
        try:
            return await handler(request)
        finally:
            connection.requests, connection.since = connection.requests - 1, time.monotonic()

    async def _admit(self, server: web.Server, connection: socket.socket, host: str) -> None:
        self._forget_closed()
        if not self._quota.admits(host):
            self._close_longest_idle(host)
        if not self._quota.take(host):
            connection.close()
            if self._limit.passes()[0]:
                log.warning("panel: too many connections (%d), one from %s was refused", self._quota.held, host)
            return
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, connection)
        except BaseException:
            self._quota.release(host)
            connection.close()
            raise
        self._open[transport] = _Connection(transport, host)

    def _close_longest_idle(self, host: str) -> None:
        idle = sorted((one for one in self._open.values() if not one.requests), key=lambda one: one.since)
        candidates = [one for one in idle if one.host == host]
        candidates += [one for one in idle if is_loopback(one.host) == is_loopback(host)]
        if candidates:
            self._close(candidates[0])

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.transport]
        self._quota.release(connection.host)
        if isinstance(connection.transport, asyncio.WriteTransport):
            connection.transport.abort()

    def _forget_closed(self) -> None:
        for connection in [one for one in self._open.values() if one.transport.is_closing()]:
            self._close(connection)

    async def _sweep(self) -> None:
        """Close what is overdue, again and again."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._forget_closed()
            now = time.monotonic()
            for connection in [one for one in self._open.values() if one.due < now]:
                self._close(connection)
