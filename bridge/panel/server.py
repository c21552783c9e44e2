"""The HTTP port: the panel with its previews, OSCQuery's tree, metrics, and the WebSockets. One event loop on a thread.

``/`` is the page for a browser and the tree for every other client, as OSCQuery requires.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from importlib.resources import files
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from bridge.images import encode_jpeg
from bridge.network.access import AccessPolicy
from bridge.network.listen import open_listener
from bridge.network.quota import MAX_HTTP_CONNECTIONS, Quota
from bridge.osc.oscquery import ATTRIBUTES, build_tree, find_node, host_info
from bridge.panel.auth import add_security_headers, build_middleware
from bridge.panel.connections import Connections, http_log
from bridge.panel.log_lines import LogLines
from bridge.panel.metrics import health, metrics
from bridge.panel.preview import Preview
from bridge.panel.sockets import MAX_MESSAGE_BYTES, Sockets
from bridge.show.show import Show

#: The files of the page, with their content types.
PAGE_FILES = {
    "page.html": "text/html",
    "panel.css": "text/css",
    "panel.js": "text/javascript",
    "connection.js": "text/javascript",
    "controls.js": "text/javascript",
    "regions.js": "text/javascript",
}
NO_STORE = {"Cache-Control": "no-store"}
#: Separates the JPEGs of a video stream.
BOUNDARY = "frame"
#: Video streams at once; with fewer connections a quarter of them.
MAX_VIEWERS = 64


class PanelServer:
    """Serves ``show`` on ``host``:``port``; reports ``osc_port`` to OSCQuery clients.

    At most ``max_connections`` are open. Raises OSError where the port is in use.
    """

    def __init__(
        self,
        show: Show,
        host: str,
        port: int,
        osc_port: int = 0,
        access: AccessPolicy | None = None,
        max_connections: int = MAX_HTTP_CONNECTIONS,
    ) -> None:
        self._show, self._osc_port = show, osc_port
        self._access = access or AccessPolicy(host)
        self._page_files = {name: files("bridge.panel").joinpath(name).read_bytes() for name in PAGE_FILES}
        listener = open_listener(host, port)
        self._connections = Connections(listener, max_connections)
        self._viewers = Quota(min(MAX_VIEWERS, max_connections // 4))
        self.port: int = listener.getsockname()[1]
        self._log_lines = LogLines()
        logging.getLogger().addHandler(self._log_lines)
        self._sockets = Sockets(show, self._log_lines, max_connections)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="panel", daemon=True)
        self._thread.start()
        started.wait(5)
        show.state.on_set(self._note)

    def close(self) -> None:
        """Stop serving."""
        logging.getLogger().removeHandler(self._log_lines)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(3)

    def _note(self, names: frozenset[str], _origin: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._sockets.note, names)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_report)
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._previews = {name: Preview(self._show, name) for name in ("input", "output")}
        middlewares = [self._connections.track, build_middleware(self._access)]
        app = web.Application(middlewares=middlewares, client_max_size=MAX_MESSAGE_BYTES)
        app.on_response_prepare.append(add_security_headers)
        app.add_routes(
            [
                web.get("/", self._get_root),
                web.get("/panel", self._sockets.serve_panel),
                *(web.get(f"/{name}", self._get_page_file) for name in PAGE_FILES),
                web.get("/status.json", self._get_status),
                web.get("/metrics", self._get_metrics),
                web.get("/health", self._get_health),
                web.get("/{name:input|output}.jpg", self._get_image),
                web.get("/{name:input|output}.mjpg", self._get_video),
                web.get("/thumbnails/{name}.jpg", self._get_thumbnail),
                web.get("/{path:.*}", self._get_node),
            ]
        )
        # A stream whose client has gone ends at once, also while there is no new picture to send.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await runner.setup()
        assert runner.server is not None
        tasks = [
            asyncio.create_task(self._connections.serve(runner.server)),
            asyncio.create_task(self._sockets.broadcast_forever()),
        ]
        started.set()
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await self._sockets.close()
        await runner.cleanup()

    async def _get_root(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._sockets.serve_oscquery(request)
        if "text/html" in request.headers.get("Accept", "") and not request.query_string:
            return self._page_file("page.html")
        return await self._get_node(request)

    async def _get_page_file(self, request: web.Request) -> web.Response:
        return self._page_file(request.path.removeprefix("/"))

    async def _get_node(self, request: web.Request) -> web.StreamResponse:
        """Return a node of OSCQuery's tree, or the attribute that the query names."""
        attribute = request.query_string
        if attribute == "HOST_INFO":
            return web.json_response(host_info("Phosphene", self._osc_port, self.port))
        if attribute and attribute not in ATTRIBUTES:
            return web.Response(status=400, text=f"unknown attribute {attribute[:80]!r}")
        node = find_node(build_tree(self._show.state.snapshot(), self._show.heartbeat()), request.path)
        if node is None:
            return web.Response(status=404, text="no such node")
        if not attribute:
            return web.json_response(node)
        if attribute not in node:
            return web.Response(status=204)
        return web.json_response({attribute: node[attribute]})

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._show.status().as_dict())

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=metrics(self._show.status()), headers={"Content-Type": CONTENT_TYPE_LATEST, **NO_STORE}
        )

    async def _get_health(self, _request: web.Request) -> web.Response:
        healthy, report = health(self._show.status())
        return web.json_response(report, status=200 if healthy else 503, headers=NO_STORE)

    async def _get_image(self, request: web.Request) -> web.Response:
        frame = self._previews[request.match_info["name"]].frame()
        if frame is None:
            return web.Response(status=404, text="no frame yet")
        data = await asyncio.to_thread(encode_jpeg, frame)
        return web.Response(body=data, content_type="image/jpeg", headers=NO_STORE)

    async def _get_video(self, request: web.Request) -> web.StreamResponse:
        """Stream JPEGs, each replacing the one before it (multipart/x-mixed-replace)."""
        preview, address = self._previews[request.match_info["name"]], request.remote or ""
        if not self._viewers.take(address):
            return web.Response(status=503, text="too many video streams are open")
        content_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        response = web.StreamResponse(headers={"Content-Type": content_type, **NO_STORE})
        preview.viewers += 1
        data = b""
        try:
            await response.prepare(request)
            while not self._stop.is_set():
                data = await preview.next_jpeg(data)
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                await response.write(head.encode() + data + b"\r\n")
        except ConnectionError:
            pass  # the browser closed the page
        finally:
            preview.viewers -= 1
            self._viewers.release(address)
        return response

    async def _get_thumbnail(self, request: web.Request) -> web.Response:
        fetched: asyncio.Future[bytes | None] = self._loop.create_future()

        def deliver(data: bytes | None) -> None:
            if not fetched.done():
                fetched.set_result(data)

        self._show.automation.presets.fetch_thumbnail(
            request.match_info["name"], lambda data: self._loop.call_soon_threadsafe(deliver, data)
        )
        data = await fetched
        if data is None:
            return web.Response(status=404, text="no such thumbnail")
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    def _page_file(self, name: str) -> web.Response:
        """Return one of the page's files, as it was at the start."""
        body, content_type = self._page_files[name], PAGE_FILES[name]
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=NO_STORE)


def _report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what a callback of the event loop raised, in one line."""
    http_log.error("%s: %s", context.get("message"), context.get("exception"))
