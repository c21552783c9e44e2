"""The HTTP port: the panel with its pictures, OSCQuery's tree, and a WebSocket for each of them. One event loop on a thread of its own.

``/`` is the page for a browser and the tree for everyone else, as OSCQuery wants it. The panel talks JSON over ``/panel``: what it gets are
the table once, then values, status and log as they change; what it sends are ``{"set": NAME, "value": VALUE}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Awaitable
from importlib.resources import files
from typing import Any

from aiohttp import WSMsgType, web

from bridge.images import jpeg
from bridge.network.access import AccessPolicy
from bridge.osc.dispatch import Peer
from bridge.osc.oscquery import ATTRIBUTES, build_tree, find_node, host_info
from bridge.osc.subscriptions import encode_message
from bridge.panel.auth import guard
from bridge.panel.metrics import health, metrics
from bridge.panel.preview import Preview
from bridge.show.show import Show
from engine.shared.parameter import Parameter
from engine.shared.table import ROOT, TABLE, canonical

log = logging.getLogger(__name__)
#: Rounds a second in which changes are told, seconds between two tellings of the status, and lines of the log that are kept.
RATE, STATUS, LINES = 20, 0.5, 200
#: Largest message of a WebSocket in bytes, and most WebSockets at once.
LARGEST, MOST = 65536, 64
BOUNDARY = "frame"


class PanelServer:
    """Serves ``show`` on ``host``:``port``; ``osc_port`` is told to those who ask. Raises OSError where the port is taken."""

    def __init__(self, show: Show, host: str, port: int, osc_port: int = 0, doors: AccessPolicy | None = None) -> None:
        self._show, self._osc_port = show, osc_port
        self._doors = doors or AccessPolicy(host)
        self._socket = socket.create_server((host, port), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self._log = Lines()
        logging.getLogger().addHandler(self._log)
        self._changed: set[str] = set()
        self._panels: set[web.WebSocketResponse] = set()
        self._listeners: dict[web.WebSocketResponse, set[str]] = {}
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="panel", daemon=True)
        self._thread.start()
        started.wait(5)
        show.state.on_set(self._note)

    def close(self) -> None:
        """Stops serving."""
        logging.getLogger().removeHandler(self._log)
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(3)

    def _note(self, names: frozenset[str], _by: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                lambda: self._changed.update(names)
            )  # the set is another after every telling: looked up then

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._previews = {name: Preview(self._show, name) for name in ("input", "output")}
        app = web.Application(middlewares=[guard(self._doors)], client_max_size=LARGEST)
        app.add_routes(
            [
                web.get("/", self._root),
                web.get("/panel", self._panel),
                web.get("/panel.{ending:css|js}", self._file),
                web.get("/status.json", self._status),
                web.get("/metrics", self._metrics),
                web.get("/health", self._health),
                web.get("/{what:input|output}.jpg", self._picture),
                web.get("/{what:input|output}.mjpg", self._film),
                web.get("/thumbnails/{name}.jpg", self._thumbnail),
                web.get("/{path:.*}", self._node),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        started.set()
        telling = asyncio.create_task(self._tell())
        await self._ended.wait()
        telling.cancel()
        for each in (*self._panels, *self._listeners):
            await each.close()
        await runner.cleanup()

    async def _root(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._listen(request)
        if "text/html" in request.headers.get("Accept", "") and not request.query_string:
            return _file("page.html")
        return await self._node(request)

    async def _file(self, request: web.Request) -> web.Response:
        return _file(f"panel.{request.match_info['ending']}")

    async def _node(self, request: web.Request) -> web.StreamResponse:
        """A node of the tree, or one of its attributes."""
        asked = request.query_string
        if asked == "HOST_INFO":
            return web.json_response(host_info("Phosphene", self._osc_port, self.port))
        if asked and asked not in ATTRIBUTES:
            return web.Response(status=400, text=f"no attribute is called {asked[:80]!r}")
        node = find_node(build_tree(self._show.state.snapshot(), self._show.heartbeat()), request.path)
        if node is None:
            return web.Response(status=404, text="there is no such node")
        if not asked:
            return web.json_response(node)
        return web.json_response({asked: node[asked]}) if asked in node else web.Response(status=204)

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._show.status())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=metrics(self._show.status()), headers={"Cache-Control": "no-store"})

    async def _health(self, _request: web.Request) -> web.Response:
        healthy, told = health(self._show.status())
        return web.json_response(told, status=200 if healthy else 503, headers={"Cache-Control": "no-store"})

    async def _picture(self, request: web.Request) -> web.Response:
        frame = self._previews[request.match_info["what"]].frame()
        if frame is None:
            return web.Response(status=404, text="there is no picture yet")
        return web.Response(
            body=await asyncio.to_thread(jpeg, frame), content_type="image/jpeg", headers={"Cache-Control": "no-store"}
        )

    async def _film(self, request: web.Request) -> web.StreamResponse:
        preview = self._previews[request.match_info["what"]]
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        preview.watchers += 1
        shown = b""
        try:
            while not self._ended.is_set():
                shown = await preview.next(shown)
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(shown)}\r\n\r\n"
                await response.write(head.encode() + shown + b"\r\n")
        except (ConnectionError, asyncio.CancelledError):
            pass  # the browser closed the page
        finally:
            preview.watchers -= 1
        return response

    async def _thumbnail(self, request: web.Request) -> web.Response:
        data = self._show.automation.presets.thumbnail(request.match_info["name"])
        if data is None:
            return web.Response(status=404, text="there is no such picture")
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    async def _panel(self, request: web.Request) -> web.StreamResponse:
        """The panel's WebSocket."""
        if (refused := self._full()) is not None:
            return refused
        ws = web.WebSocketResponse(heartbeat=20, max_msg_size=LARGEST)
        await ws.prepare(request)
        values = dict(self._show.state.snapshot())
        await ws.send_json(
            {"table": [described(p) for p in TABLE.values()], "values": values, "log": list(self._log.lines)}
        )
        self._panels.add(ws)
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    self._wish(message.data, f"panel at {request.remote}")
        finally:
            self._panels.discard(ws)
        return ws

    def _wish(self, text: str, origin: str) -> None:
        """``{"set": NAME, "value": VALUE}``; without a value a trigger."""
        try:
            wish = json.loads(text)
            name, arguments = wish["set"], [wish["value"]] if wish.get("value") is not None else []
            if not isinstance(name, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._show.state.reject(f"a message of {len(text)} characters is no wish", origin)
            return
        self._show.state.set(canonical(name), arguments, origin)

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        """OSCQuery's WebSocket: LISTEN and IGNORE as JSON, OSC packets both ways."""
        if (refused := self._full()) is not None:
            return refused
        ws = web.WebSocketResponse(heartbeat=20, max_msg_size=LARGEST)
        await ws.prepare(request)
        paths = self._listeners.setdefault(ws, set())
        origin = f"OSCQuery from {request.remote}"
        peer = Peer(origin, ws)
        try:
            async for message in ws:
                if message.type is WSMsgType.BINARY:
                    if request["trusted"]:
                        self._show.osc.handle_packet(message.data, peer)
                    else:
                        self._show.state.reject("it may listen, but changes need the panel's token", origin)
                elif message.type is WSMsgType.TEXT:
                    self._heed(message.data, paths, origin)
        finally:
            self._listeners.pop(ws, None)
        return ws

    def _heed(self, text: str, paths: set[str], origin: str) -> None:
        """``{"COMMAND": "LISTEN" or "IGNORE", "DATA": PATH}``: changes ``paths``, of which there are no more than nodes."""
        try:
            told = json.loads(text)
            command, path = told["COMMAND"], str(told["DATA"])
            if command == "LISTEN" and path.removeprefix(ROOT) not in TABLE:
                return self._show.state.reject(f"there is no node {path[:80]!r} to listen to", origin)
            {"LISTEN": paths.add, "IGNORE": paths.discard}[command](path)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._show.state.reject("a message is neither LISTEN nor IGNORE", origin)

    def _full(self) -> web.Response | None:
        many = len(self._panels) + len(self._listeners) >= MOST
        return web.Response(status=503, text=f"more than {MOST} are connected already") if many else None

    async def _tell(self) -> None:
        """Tells panels and listeners what changed, and how it goes."""
        due, version = 0.0, TABLE.version
        while True:
            await asyncio.sleep(1 / RATE)
            try:
                changed, self._changed = self._changed, set()
                news: dict[str, Any] = {}
                snapshot = self._show.state.snapshot()
                if changed:
                    news["values"] = {name: snapshot[name] for name in changed if name in snapshot}
                if TABLE.version != version:
                    version = TABLE.version
                    news |= {"table": [described(p) for p in TABLE.values()], "values": dict(snapshot)}
                    await self._send_all(
                        self._listeners, json.dumps({"COMMAND": "PATH_CHANGED", "DATA": f"{ROOT}/hook"})
                    )
                if self._log.fresh:
                    news["log"] = self._log.taken()
                now = self._loop.time()
                if now >= due and self._panels:
                    due = now + STATUS
                    status = dict(self._show.status())
                    del status["parameters"]
                    news["status"] = status
                if news:
                    await self._send_all(self._panels, json.dumps(news))
                for ws, paths in list(self._listeners.items()):
                    for name in sorted(changed):
                        if ROOT + name in paths and name in snapshot:
                            await _safely(ws.send_bytes(encode_message(ROOT + name, snapshot[name])))
            except Exception:  # one round that fails must not end the others
                log.exception("the panel stumbled")

    async def _send_all(self, sockets: Any, text: str) -> None:
        await asyncio.gather(*(_safely(ws.send_str(text)) for ws in list(sockets)))


def _file(name: str) -> web.Response:
    """One of the panel's own files."""
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    body = files("bridge.panel").joinpath(name).read_bytes()
    return web.Response(
        body=body, content_type=kinds[name.split(".")[1]], charset="utf-8", headers={"Cache-Control": "no-store"}
    )


async def _safely(sending: Awaitable[None]) -> None:
    """Waits a moment for one who is slow, and not at all for one who is gone."""
    try:
        await asyncio.wait_for(sending, 1.0)
    except (ConnectionError, TimeoutError, RuntimeError):
        pass


def described(parameter: Parameter) -> dict[str, Any]:
    """A row of the table for the panel."""
    return {
        "name": parameter.name, "kind": parameter.kind, "default": parameter.default, "help": parameter.help, "low": parameter.low,
        "high": parameter.high, "unit": parameter.unit, "choices": parameter.choices, "live": parameter.live,
    }  # fmt: skip


class Lines(logging.Handler):
    """The last lines of the log, and those that are new."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=LINES)
        self.fresh: deque[str] = deque(maxlen=LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).splitlines()[0][:500]
        self.lines.append(line)
        self.fresh.append(line)

    def taken(self) -> list[str]:
        """The new ones, which are not new any more."""
        return [self.fresh.popleft() for _ in range(len(self.fresh))]
