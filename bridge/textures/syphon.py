"""``syphon:NAME``: Syphon textures between programs of one Mac. Written to the package's facts; not run on macOS yet."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from bridge.images import swap_red_blue
from bridge.textures.base import Sink, Source, SourceLost, TextureError
from engine.shared.frame import Frame, Pixels

BGRA8_UNORM = 80  # MTLPixelFormatBGRA8Unorm


def available() -> str:
    """ "" where Syphon can be used, else the line that makes it so."""
    if sys.platform != "darwin":
        return "Syphon exists on macOS only; use ndi: here"
    try:
        import syphon  # noqa: F401
    except ImportError:
        return "Syphon needs the package syphon-python: pip install 'phosphene[syphon]'"
    return ""


def _servers() -> list[Any]:
    """The servers' descriptions, after a turn of the run loop, which fills the directory."""
    import syphon
    from Foundation import NSDate, NSRunLoop  # comes with syphon-python

    directory = syphon.SyphonServerDirectory()
    NSRunLoop.currentRunLoop().runUntilDate_(NSDate.dateWithTimeIntervalSinceNow_(0.1))
    return list(directory.servers)


def names() -> list[str]:
    """The Syphon servers of this machine, as ``application/name``."""
    return [f"{server.app_name}/{server.name}" for server in _servers()]


class SyphonSource(Source):
    """Receives the newest texture of a server, found by its name, its application or ``application/name``."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name
        self._client: Any = None

    def _open(self) -> None:
        import syphon

        for server in _servers():
            if self._name in ("", server.name, server.app_name, f"{server.app_name}/{server.name}"):
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

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name or "phosphene-out"
        self._server: Any = None
        self._texture: Any = None
        self._size = (0, 0)

    def _open(self) -> None:
        import syphon

        self._server = syphon.SyphonMetalServer(self._name)

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
