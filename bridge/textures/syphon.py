"""``syphon:NAME``: Syphon textures on one Mac. Written from syphon-python's sources, tested against a stand-in.

Never run on macOS. Row 0 of a Syphon surface is the bottom of the picture, as in OpenGL: what comes in is turned over
here, what goes out by the server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge import main_loop
from bridge.images import swap_red_blue
from bridge.textures.base import Sink, Source, SourceLost, Transport, match_sender
from engine.shared.frame import Frame, Pixels

BGRA8_UNORM = 80  # MTLPixelFormatBGRA8Unorm
#: How long the main thread runs its run loop for the answers of the servers: to list them, and to open one.
LIST_SECONDS, OPEN_SECONDS = 1.0, 0.1


def find_servers(seconds: float) -> list[Any]:
    """Return the descriptions of the servers that the main run loop has heard of.

    On the main thread, run that loop for ``seconds`` first. Any other thread only reads.
    """
    import syphon

    if main_loop.must_pump():
        main_loop.pump(seconds)
    directory = syphon.SyphonServerDirectory()
    directory.run_loop_interval = 0.0  # seconds that ``servers`` would run the loop of this thread, whichever it is
    return list(directory.servers)


def full_name(server: Any) -> str:
    """Return a server's name as TouchDesigner lists it, ``application:server``, or what there is of it."""
    return ":".join(part for part in (server.app_name, server.name) if part)


def match_server(query: str, servers: Sequence[Any]) -> Any | None:
    """Return the server whose ``application:server``, name or application equals ``query``, else contains it, or None.

    ``application/server`` is the former spelling. An empty query matches the first server.
    """
    spellings = (
        full_name,
        lambda server: f"{server.app_name}/{server.name}",
        lambda server: server.name,
        lambda server: server.app_name,
    )
    for spelling in spellings if query else ():
        for server in servers:
            if spelling(server) == query:
                return server
    name = match_sender(query, [full_name(server) for server in servers])
    return next((server for server in servers if full_name(server) == name), None)


def list_servers() -> list[str]:
    """Return the Syphon servers of this machine, as ``application:server``."""
    return [full_name(server) for server in find_servers(LIST_SECONDS)]


class SyphonSource(Source):
    """Receives the newest texture of a server. NAME is ``application:server``, one of both, or a part of it."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._client: Any = None

    def _open(self) -> None:
        import syphon

        server = match_server(self.name, find_servers(OPEN_SECONDS))
        if server is None:
            raise SourceLost("no such server yet")
        try:
            self._client = syphon.SyphonMetalClient(server)
        except RuntimeError as error:  # it ended a moment ago
            raise SourceLost(str(error)) from None

    def _read(self, timeout: float) -> Pixels | None:
        from syphon.utils.numpy import copy_mtl_texture_to_image

        limit = time.perf_counter() + timeout
        while not self._client.has_new_frame:
            if not self._client.is_valid:
                raise SourceLost("the server is gone")
            if time.perf_counter() >= limit:
                return None
            main_loop.sleep(0.002)
        texture = self._client.new_frame_image
        if texture is None:
            return None
        return swap_red_blue(np.ascontiguousarray(copy_mtl_texture_to_image(texture)[::-1]))

    def _close(self) -> None:
        self._client.stop()


class SyphonSink(Sink):
    """Publishes a Metal texture under one name."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._server: Any = None
        self._texture: Any = None
        self._size = (0, 0)

    def _open(self) -> None:
        import syphon

        self._server = syphon.SyphonMetalServer(self.name)

    def _write(self, frame: Frame) -> None:
        from syphon.utils.numpy import copy_image_to_mtl_texture
        from syphon.utils.raw import create_mtl_texture

        if frame.size != self._size:
            self._texture = create_mtl_texture(self._server.device, *frame.size, BGRA8_UNORM)
            self._size = frame.size
        copy_image_to_mtl_texture(swap_red_blue(frame.pixels), self._texture)
        self._server.publish_frame_texture(self._texture, is_flipped=True)

    def _close(self) -> None:
        self._server.stop()
        self._texture, self._size = None, (0, 0)


TRANSPORT = Transport(
    scheme="syphon",
    title="Syphon",
    source=SyphonSource,
    sink=SyphonSink,
    names=list_servers,
    platform="darwin",
    package="syphon-python",
    module="syphon",
    install="phosphene[syphon]",
    rank=0,
    default_sender="phosphene-in",
    default_sink="phosphene-out",
)
