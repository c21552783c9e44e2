"""The HTTP server: a page with the input and the output picture, and the status as JSON."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

from bridge.show import Show, jpeg
from engine.mailbox import Frame

#: Pictures a second in the preview, at most.
RATE = 12
BOUNDARY = "frame"


class PanelServer:
    """Serves the page for ``show`` on a thread of its own. Raises OSError where the port is taken."""

    def __init__(self, show: Show, host: str, port: int) -> None:
        class Handler(_Handler):
            pass

        Handler.show = show
        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="panel", daemon=True).start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    show: Show

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            if path == "/":
                self._send(files("bridge.panel").joinpath("page.html").read_bytes(), "text/html; charset=utf-8")
            elif path == "/status.json":
                self._send(json.dumps(self.show.status()).encode(), "application/json")
            elif path in ("/input.mjpg", "/output.mjpg"):
                self._stream(path)
            elif path in ("/input.jpg", "/output.jpg") and (frame := self._frame(path)) is not None:
                self._send(jpeg(frame), "image/jpeg")
            else:
                self.send_error(404)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the browser closed the page

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: the status line is worth more than they are."""

    def _frame(self, path: str) -> Frame | None:
        return self.show.input if path.startswith("/input") else self.show.output

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, path: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        last = None
        while True:
            frame = self._frame(path)
            if frame is not None and frame is not last:
                last, body = frame, jpeg(frame)
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body + b"\r\n")
            time.sleep(1 / RATE)
