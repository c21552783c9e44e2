"""The connections of the panel's port: accepted within a quota, and closed where no request comes.

They are counted before anything of them is parsed, so that half requests without end cannot take what others need.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from bridge.network.quota import Quota, is_loopback
from bridge.panel.auth import SECURITY_HEADERS
from bridge.rate_limit import OneLine, RateLimit

log = logging.getLogger(__name__)
#: What the HTTP library reports: on a port that strangers reach, one line at a limited rate and no traceback.
http_log = logging.getLogger("bridge.panel.http")
http_log.addFilter(OneLine())
#: Time for the header of the first request, and between two requests, in seconds.
HEADER_SECONDS, IDLE_SECONDS = 10.0, 30.0
#: Time after which a client that reads nothing of what is sent to it is disconnected, in seconds.
STALL_SECONDS = 30.0
#: Time to read and drop the rest of a request that no handler reads, in seconds.
LINGER_SECONDS = 1.0
#: Time between two looks at what is overdue, and the pause after a failure, in seconds.
SWEEP_SECONDS, RETRY_SECONDS = 1.0, 0.2


@dataclass(eq=False)
class _Connection:
    """A connection; ``requests`` are being handled now, ``since`` is when that number last changed.

    ``unsent`` bytes have been waiting, and not one of them was read, since ``read_at``.
    """

    protocol: _Protocol
    host: str
    link: asyncio.WriteTransport | None = None  # the library forgets its own while it still sends
    requests: int = 0
    has_request: bool = False
    since: float = field(default_factory=time.perf_counter)
    unsent: int = 0
    read_at: float = field(default_factory=time.perf_counter)

    def is_overdue(self, now: float) -> bool:
        """Return whether no request came in time, or nothing of an answer was read for long."""
        unsent = self.link.get_write_buffer_size() if self.link is not None else 0
        if not unsent or unsent != self.unsent:
            self.unsent, self.read_at = unsent, now
        if self.requests:
            return now - self.read_at > STALL_SECONDS
        return now - self.since > (IDLE_SECONDS if self.has_request else HEADER_SECONDS)


class _Protocol(web.RequestHandler):
    """The library's protocol of one connection. It reports its end, and answers what is no request in one line."""

    def __init__(self, server: web.Server, on_lost: Callable[[_Protocol], None]) -> None:
        settings: dict[str, Any] = {"access_log": None, "lingering_time": LINGER_SECONDS, "auto_decompress": False}
        super().__init__(server, loop=asyncio.get_running_loop(), logger=http_log, **settings)
        self._on_lost = on_lost

    def connection_lost(self, exc: BaseException | None) -> None:
        """Report the end of the connection."""
        super().connection_lost(exc)
        self._on_lost(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what cannot be parsed (status 400), or whose handler failed, and end the connection."""
        level = logging.ERROR if status >= 500 else logging.DEBUG
        http_log.log(level, "a request from %s failed", request.remote, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer has been sent already")
        text = "Malformed request" if status < 500 else "The request failed; see the log"
        response = web.Response(status=status, text=text, headers=SECURITY_HEADERS)
        response.force_close()
        return response


class Connections:
    """Accepts connections on ``listener`` for a server of aiohttp. Belongs to the event loop.

    Where there is no place left, a new connection replaces the one that has been without a request for longest: of the
    same machine, or else of the same kind, this machine or others. Requests that are being handled are never cut.
    """

    def __init__(self, listener: socket.socket, limit: int) -> None:
        self._listener, self._quota, self._limit = listener, Quota(limit), RateLimit()
        self._open: dict[asyncio.BaseProtocol, _Connection] = {}

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._open)

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
                except Exception as error:  # no descriptor or no memory left: that may pass
                    if self._limit.passes()[0]:
                        log.error("panel: a connection could not be accepted (%s)", error)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            sweep.cancel()
            self._listener.close()

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a request is being handled, for as long as it is."""
        connection = self._open.get(request.protocol)
        if connection is None:
            return await handler(request)
        connection.has_request, connection.requests = True, connection.requests + 1
        try:
            return await handler(request)
        finally:
            connection.requests, connection.since = connection.requests - 1, time.perf_counter()

    async def _admit(self, server: web.Server, connection: socket.socket, host: str) -> None:
        if not self._quota.admits(host):
            self._close_longest_idle(host)
        if not self._quota.take(host):
            connection.close()
            if self._limit.passes()[0]:
                log.warning("panel: too many connections (%d), one from %s was refused", self._quota.held, host)
            return
        protocol = _Protocol(server, self._release)
        opened = self._open[protocol] = _Connection(protocol, host)
        try:
            link, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except BaseException:
            self._release(protocol)
            connection.close()
            raise
        opened.link = link if isinstance(link, asyncio.WriteTransport) else None

    def _close_longest_idle(self, host: str) -> None:
        idle = sorted((one for one in self._open.values() if not one.requests), key=lambda one: one.since)
        candidates = [one for one in idle if one.host == host]
        candidates += [one for one in idle if is_loopback(one.host) == is_loopback(host)]
        if candidates:
            self._close(candidates[0])

    def _close(self, connection: _Connection) -> None:
        """End a connection at once, also one whose client does not read what is still to be sent."""
        self._release(connection.protocol)
        if connection.link is not None:
            connection.link.abort()

    def _release(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the place of a connection back, once."""
        connection = self._open.pop(protocol, None)
        if connection is not None:
            self._quota.release(connection.host)

    async def _sweep(self) -> None:
        """Close what is overdue, again and again."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.perf_counter()
            for connection in [one for one in self._open.values() if one.is_overdue(now)]:
                self._close(connection)
