"""The WebSockets of the HTTP port: the panels' with JSON, and those of OSCQuery clients.

A panel receives the parameter table once, then values, status and log as they change. It sends
``{"set": NAME, "value": VALUE}``; without a value for triggers and toggles. ``{"regions": true}`` asks for the maps of
the regions that are computed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aiohttp import WSMsgType, web

from bridge.network.quota import MAX_HTTP_CONNECTIONS, Quota
from bridge.osc.dispatch import Peer
from bridge.osc.subscriptions import encode_message
from bridge.panel.log_lines import MAX_LINES, LogLines
from bridge.panel.outbox import Outbox, Pending
from bridge.panel.region_watchers import RegionWatchers
from bridge.rate_limit import RateLimit
from bridge.show.show import Show
from engine.shared.parameter import Parameter
from engine.shared.table import ROOT, TABLE, canonical

log = logging.getLogger(__name__)
#: Broadcasts per second, and seconds between two status reports.
BROADCAST_RATE, STATUS_SECONDS = 20, 0.5
#: Largest message of a WebSocket, and seconds between two pings.
MAX_MESSAGE_BYTES, HEARTBEAT_SECONDS = 65536, 20
#: Panels and OSCQuery clients at once, each an eighth of the connections: neither can take the places of the other.
MAX_PANELS, MAX_LISTENERS = MAX_HTTP_CONNECTIONS // 8, MAX_HTTP_CONNECTIONS // 8
#: Longest time for the clients to take their leave when the show ends, in seconds.
CLOSE_SECONDS = 1.0
#: In an OSCQuery client's outbox: the tree has other nodes now.
PATH_CHANGED = "PATH_CHANGED"


class Sockets:
    """Every open WebSocket of one show. Belongs to the event loop; ``note`` must be called there too."""

    def __init__(self, show: Show, log_lines: LogLines, max_connections: int = MAX_HTTP_CONNECTIONS) -> None:
        self._show, self._log_lines = show, log_lines
        places = max(2, max_connections // 8)
        self._panel_quota, self._listener_quota = Quota(min(MAX_PANELS, places)), Quota(min(MAX_LISTENERS, places))
        self._panels: dict[web.WebSocketResponse, Outbox] = {}
        self._listeners: dict[web.WebSocketResponse, tuple[Outbox, set[str]]] = {}
        self._region_watchers = RegionWatchers(show.supervisor)
        self._changed: set[str] = set()
        self._limit = RateLimit()

    def note(self, names: Iterable[str]) -> None:
        """Note parameters that changed, for the next broadcast."""
        self._changed.update(names)

    async def close(self) -> None:
        """Close every WebSocket."""
        sockets = (*self._panels, *self._listeners)
        if sockets:
            await asyncio.wait([asyncio.create_task(socket.close()) for socket in sockets], timeout=CLOSE_SECONDS)

    async def serve_panel(self, request: web.Request) -> web.StreamResponse:
        """Handle a panel's WebSocket until it closes."""
        address = request.remote or ""
        if not self._panel_quota.take(address):
            return web.Response(status=503, text="too many panels are open")
        socket = _new_socket()
        outbox = Outbox(socket, lambda pending: [json.dumps(pending)], merge_update)
        try:
            await socket.prepare(request)
            values = dict(self._show.state.snapshot())
            outbox.put({"table": describe_table(), "values": values, "log": list(self._log_lines.lines)})
            self._panels[socket] = outbox
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._handle_request(message.data, outbox, f"panel at {address}")
        finally:
            self._panels.pop(socket, None)
            self._region_watchers.watch(outbox, False)
            outbox.close()
            self._panel_quota.release(address)
        return socket

    async def serve_oscquery(self, request: web.Request) -> web.StreamResponse:
        """Handle an OSCQuery client's WebSocket: LISTEN and IGNORE as JSON, OSC packets both ways."""
        address = request.remote or ""
        if not self._listener_quota.take(address):
            return web.Response(status=503, text="too many OSCQuery clients are connected")
        socket, paths = _new_socket(), set[str]()
        outbox = Outbox(socket, encode_values)
        origin = f"OSCQuery from {address}"
        peer = Peer(origin, socket)
        try:
            await socket.prepare(request)
            self._listeners[socket] = outbox, paths
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._handle_command(message.data, paths, origin)
                elif message.type is WSMsgType.BINARY and request["trusted"]:
                    self._show.osc.handle_packet(message.data, peer)
                elif message.type is WSMsgType.BINARY:
                    self._show.state.reject("changes need the panel's token; listening does not", origin)
        finally:
            self._listeners.pop(socket, None)
            outbox.close()
            self._listener_quota.release(address)
        return socket

    async def broadcast_forever(self) -> None:
        """Send changes, log lines and status to panels and OSCQuery clients, BROADCAST_RATE times a second."""
        next_status, version = 0.0, TABLE.version
        while True:
            await asyncio.sleep(1 / BROADCAST_RATE)
            try:
                changed, self._changed = self._changed, set()
                snapshot = self._show.state.snapshot()
                values = {name: snapshot[name] for name in changed if name in snapshot}
                update: dict[str, Any] = {"values": values} if values else {}
                if TABLE.version != version:
                    version = TABLE.version
                    update |= {"table": describe_table(), "values": dict(snapshot)}
                    for outbox, _ in self._listeners.values():
                        outbox.put({PATH_CHANGED: f"{ROOT}/hook"})
                if lines := self._log_lines.pop_unsent():
                    update["log"] = lines
                now = asyncio.get_running_loop().time()
                if now >= next_status and self._panels:
                    next_status = now + STATUS_SECONDS
                    update["status"] = self._show.status().as_dict()
                    del update["status"]["parameters"]
                for outbox in self._panels.values():
                    outbox.put(update)
                self._region_watchers.send_newest()
                for outbox, paths in self._listeners.values():
                    outbox.put({ROOT + name: values[name] for name in sorted(values) if ROOT + name in paths})
            except Exception:  # the next update may work
                if self._limit.passes()[0]:
                    log.exception("panel update failed")

    def _handle_request(self, text: str, outbox: Outbox, origin: str) -> None:
        """Set the parameter that a panel's message names, or send it the regions."""
        try:
            request = json.loads(text)
            if "set" not in request and isinstance(request["regions"], bool):
                self._region_watchers.watch(outbox, request["regions"])
                return
            name, value = request["set"], request.get("value")
            if not isinstance(name, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            expected = '{"set": NAME, "value": VALUE}'
            self._show.state.reject(f"malformed panel message ({len(text)} characters); expected {expected}", origin)
            return
        self._show.state.set(canonical(name), [] if value is None else [value], origin)

    def _handle_command(self, text: str, paths: set[str], origin: str) -> None:
        """Add to ``paths`` or remove from it by ``{"COMMAND": "LISTEN" or "IGNORE", "DATA": PATH}``."""
        try:
            message = json.loads(text)
            command, path = message["COMMAND"], str(message["DATA"])
            if command == "LISTEN" and path.removeprefix(ROOT) not in TABLE:  # bounds the size of ``paths``
                return self._show.state.reject(f"no node {path[:80]!r} to listen to", origin)
            {"LISTEN": paths.add, "IGNORE": paths.discard}[command](path)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._show.state.reject("malformed OSCQuery message; expected LISTEN or IGNORE", origin)


def describe_table() -> list[dict[str, Any]]:
    """Return the parameter table as the panel reads it."""
    return [describe_parameter(parameter) for parameter in TABLE.values()]


def describe_parameter(parameter: Parameter) -> dict[str, Any]:
    """Return a row of the table as the panel reads it."""
    fields = ("name", "kind", "default", "help", "low", "high", "unit", "choices", "live")
    return {field: getattr(parameter, field) for field in fields}


def _new_socket() -> web.WebSocketResponse:
    return web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES)


def merge_update(pending: Pending, update: Mapping[str, Any]) -> None:
    """Add an update to those that a panel has not been sent yet: the newest of each value, every line of the log."""
    values = {**pending.get("values", {}), **update.get("values", {})}
    lines = [*pending.get("log", []), *update.get("log", [])][-MAX_LINES:]
    pending.update(update)
    pending.update({key: part for key, part in (("values", values), ("log", lines)) if part})


def encode_values(pending: Pending) -> Iterator[str | bytes]:
    """Yield an OSC message for each address, and JSON where the tree has changed."""
    for address, value in pending.items():
        if address == PATH_CHANGED:
            yield json.dumps({"COMMAND": PATH_CHANGED, "DATA": value})
        else:
            yield encode_message(address, value)
