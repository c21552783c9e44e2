"""``syphon:NAME``: Syphon textures on one Mac. Written from syphon-python's documentation; not yet run on macOS."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bridge.images import swap_red_blue
from bridge.textures.base import Sink, Source, SourceLost, Transport
from engine.shared.frame import Frame, Pixels

BGRA8_UNORM = 80  # MTLPixelFormatBGRA8Unorm


def _find_servers() -> list[Any]:
    """Return the servers' descriptions, after one pass of the run loop, which fills the directory."""
    import syphon
    from Foundation import NSDate, NSRunLoop  # comes with syphon-python

    directory = syphon.SyphonServerDirectory()
    NSRunLoop.currentRunLoop().runUntilDate_(NSDate.dateWithTimeIntervalSinceNow_(0.1))
    return list(directory.servers)


def list_servers() -> list[str]:
    """Return the Syphon servers of this machine, as ``application/name``."""
    return [f"{server.app_name}/{server.name}" for server in _find_servers()]


class SyphonSource(Source):
    """Receives the newest texture of a server, selected by name, application or ``application/name``."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._client: Any = None

    def _open(self) -> None:
        import syphon

        for server in _find_servers():
            if self.name in ("", server.name, server.app_name, f"{server.app_name}/{server.name}"):
                self._client = syphon.SyphonMetalClient(server)
                return
        raise SourceLost("no such server yet")

    def _read(self, timeout: float) -> Pixels | None:
        from syphon.utils.numpy import copy_mtl_texture_to_image

        limit = time.monotonic() + timeout
        while not self._client.has_new_frame:
            if not self._client.is_valid:
                raise SourceLost("the server is gone")
            if time.monotonic() >= limit:
                return None
            time.sleep(0.002)
        return swap_red_blue(np.ascontiguousarray(copy_mtl_texture_to_image(self._client.new_frame_image)))

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
        self._server.publish_frame_texture(self._texture)

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
    default_source="phosphene-in",
    default_sink="phosphene-out",
)
