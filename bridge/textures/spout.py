"""``spout:NAME``: Spout textures between programs of one Windows machine. Written to the package's facts; not run on Windows yet."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from bridge.textures.base import Sink, Source, SourceLost, TextureError
from engine.shared.frame import Frame, Pixels

AWAY = 2.0


def available() -> str:
    """ "" where Spout can be used, else the line that makes it so."""
    if sys.platform != "win32":
        return "Spout exists on Windows only; use ndi: here"
    try:
        import SpoutGL  # noqa: F401
    except ImportError:
        return "Spout needs the package SpoutGL: pip install 'phosphene[spout]'"
    return ""


def names() -> list[str]:
    """The Spout senders of this machine."""
    import SpoutGL

    with SpoutGL.SpoutReceiver() as receiver:
        return [str(name) for name in receiver.getSenderList()]


class SpoutSource(Source):
    """Receives into a buffer of the sender's size. The hidden OpenGL context belongs to the thread that reads first."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name
        self._receiver: Any = None
        self._buffer: Any = None

    def open(self) -> SpoutSource:
        """Nothing yet: the context must be made on the thread that reads."""
        return self

    def _open(self) -> None:
        import SpoutGL

        self._receiver = SpoutGL.SpoutReceiver()
        self._receiver.createOpenGL()
        if self._name:
            self._receiver.setReceiverName(self._name)
        self._buffer, self._heard = None, time.monotonic()

    def _read(self, timeout: float) -> Pixels | None:
        from SpoutGL.enums import GL_RGBA

        limit = time.monotonic() + timeout
        while True:
            received = self._receiver.receiveImage(self._buffer, GL_RGBA, False, 0)
            if received:
                self._heard = time.monotonic()
            if received and self._receiver.isUpdated():
                width, height = self._receiver.getSenderWidth(), self._receiver.getSenderHeight()
                self._buffer = np.zeros((height, width, 4), np.uint8) if width and height else None
            elif received and self._buffer is not None and self._receiver.isFrameNew():
                return self._buffer.copy()
            if time.monotonic() - self._heard > AWAY:
                raise SourceLost("the sender is gone")
            if time.monotonic() >= limit:
                return None
            time.sleep(0.002)

    def _close(self) -> None:
        self._receiver.releaseReceiver()
        self._receiver.closeOpenGL()


class SpoutSink(Sink):
    """Sends images under one name. Opened by the thread that writes, whose OpenGL context it needs."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name or "phosphene-out"
        self._sender: Any = None

    def _open(self) -> None:
        import SpoutGL

        self._sender = SpoutGL.SpoutSender()
        self._sender.createOpenGL()
        self._sender.setSenderName(self._name)

    def _write(self, frame: Frame) -> None:
        from SpoutGL.enums import GL_RGBA

        width, height = frame.size
        self._sender.sendImage(np.ascontiguousarray(frame.pixels), width, height, GL_RGBA, False, 0)
        self._sender.setFrameSync(self._name)

    def _close(self) -> None:
        self._sender.releaseSender()
        self._sender.closeOpenGL()
