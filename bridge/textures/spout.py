"""``spout:NAME``: Spout textures on one Windows machine. Written from SpoutGL's documentation, not yet run."""

from __future__ import annotations

import time
from typing import Any, Self

import numpy as np

from bridge.textures.base import Sink, Source, SourceLost, Transport
from engine.shared.frame import Frame, Pixels

#: A sender without a frame counts as gone after this time.
SENDER_TIMEOUT_SECONDS = 2.0


def list_senders() -> list[str]:
    """Return the Spout senders of this machine."""
    import SpoutGL

    with SpoutGL.SpoutReceiver() as receiver:
        return [str(name) for name in receiver.getSenderList()]


class SpoutSource(Source):
    """Receives into a buffer of the sender's size. The hidden OpenGL context belongs to the thread that reads first."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._receiver: Any = None
        self._buffer: Any = None

    def open(self) -> Self:
        """Do nothing yet: the OpenGL context must be created on the thread that reads."""
        return self

    def _open(self) -> None:
        import SpoutGL

        self._receiver = SpoutGL.SpoutReceiver()
        self._receiver.createOpenGL()
        if self.name:
            self._receiver.setReceiverName(self.name)
        self._buffer, self._received_at = None, time.monotonic()

    def _read(self, timeout: float) -> Pixels | None:
        from SpoutGL.enums import GL_RGBA

        limit = time.monotonic() + timeout
        while True:
            received = self._receiver.receiveImage(self._buffer, GL_RGBA, False, 0)
            if received:
                self._received_at = time.monotonic()
            if received and self._receiver.isUpdated():
                width, height = self._receiver.getSenderWidth(), self._receiver.getSenderHeight()
                self._buffer = np.zeros((height, width, 4), np.uint8) if width and height else None
            elif received and self._buffer is not None and self._receiver.isFrameNew():
                return self._buffer.copy()
            if time.monotonic() - self._received_at > SENDER_TIMEOUT_SECONDS:
                raise SourceLost("the sender is gone")
            if time.monotonic() >= limit:
                return None
            time.sleep(0.002)

    def _close(self) -> None:
        self._receiver.releaseReceiver()
        self._receiver.closeOpenGL()


class SpoutSink(Sink):
    """Sends images under one name. The thread that writes opens it and owns its OpenGL context."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._sender: Any = None

    def _open(self) -> None:
        import SpoutGL

        self._sender = SpoutGL.SpoutSender()
        self._sender.createOpenGL()
        self._sender.setSenderName(self.name)

    def _write(self, frame: Frame) -> None:
        from SpoutGL.enums import GL_RGBA

        width, height = frame.size
        self._sender.sendImage(np.ascontiguousarray(frame.pixels), width, height, GL_RGBA, False, 0)
        self._sender.setFrameSync(self.name)

    def _close(self) -> None:
        self._sender.releaseSender()
        self._sender.closeOpenGL()


TRANSPORT = Transport(
    scheme="spout",
    title="Spout",
    source=SpoutSource,
    sink=SpoutSink,
    names=list_senders,
    platform="win32",
    package="SpoutGL",
    install="phosphene[spout]",
    rank=0,
    default_source="phosphene-in",
    default_sink="phosphene-out",
)
