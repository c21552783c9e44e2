"""``spout:NAME``: Spout textures on one Windows machine. Written from SpoutGL's sources, tested against a stand-in.

Never run on Windows.
"""

from __future__ import annotations

import time
from typing import Any, Self

import numpy as np

from bridge.textures.base import Sink, Source, SourceLost, TextureError, Transport, match_sender
from engine.shared.frame import Frame, Pixels

#: A sender without a frame counts as gone after this time.
SENDER_TIMEOUT_SECONDS = 2.0
#: Frames of zeros that are passed over after connecting: Spout reads through up to four pixel buffers, empty at first.
MAX_EMPTY_FRAMES = 4
NO_OPENGL = "no OpenGL context can be made here, as on a remote desktop or without a graphics driver; use ndi:"


def list_senders() -> list[str]:
    """Return the Spout senders of this machine."""
    import SpoutGL

    with SpoutGL.SpoutReceiver() as receiver:
        return [str(name) for name in receiver.getSenderList()]


class SpoutSource(Source):
    """Receives into a buffer of the sender's size. NAME is its name or a part of it; empty: the active sender.

    The hidden OpenGL context belongs to the thread that reads. It is made for the first sender and kept until the end.
    """

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._receiver: Any = None
        self._has_context = False
        self._buffer: Any = None

    def open(self) -> Self:
        """Do nothing yet: the OpenGL context must be created on the thread that reads."""
        return self

    def _open(self) -> None:
        import SpoutGL

        if self._receiver is None:
            self._receiver = SpoutGL.SpoutReceiver()
        name = match_sender(self.name, [str(name) for name in self._receiver.getSenderList()])
        if name is None:
            raise SourceLost("no such sender yet")
        if not self._has_context and not self._receiver.createOpenGL():
            raise TextureError(f"{self.url}: {NO_OPENGL}")
        self._has_context = True
        if self.name:
            self._receiver.setReceiverName(name)
        self._buffer, self._received_at, self._empty_frames = None, time.perf_counter(), 0

    def _read(self, timeout: float) -> Pixels | None:
        from SpoutGL.enums import GL_RGBA

        limit = time.perf_counter() + timeout
        while True:
            received = self._receiver.receiveImage(self._buffer, GL_RGBA, False, 0)
            if received:
                self._received_at = time.perf_counter()
            if received and self._receiver.isUpdated():
                width, height = self._receiver.getSenderWidth(), self._receiver.getSenderHeight()
                self._buffer = np.zeros((height, width, 4), np.uint8) if width and height else None
                self._empty_frames = 0
            elif received and self._buffer is not None and self._receiver.isFrameNew() and self._is_filled():
                return self._buffer.copy()
            if time.perf_counter() - self._received_at > SENDER_TIMEOUT_SECONDS:
                raise SourceLost("the sender is gone")
            if time.perf_counter() >= limit:
                return None
            time.sleep(0.002)

    def _is_filled(self) -> bool:
        """Return whether the buffer holds a picture, not the zeros of pixel buffers that Spout has not filled yet."""
        if self._empty_frames < MAX_EMPTY_FRAMES and not self._buffer.any():
            self._empty_frames += 1
            return False
        self._empty_frames = MAX_EMPTY_FRAMES  # zeros from now on are a transparent picture
        return True

    def _close(self) -> None:
        self._receiver.releaseReceiver()

    def close(self) -> None:
        """Close the receiver, and the OpenGL context that outlives it while the sender is away."""
        super().close()
        if self._has_context:
            self._receiver.closeOpenGL()
        self._receiver, self._has_context = None, False


class SpoutSink(Sink):
    """Sends images under one name. The thread that writes opens it and owns its OpenGL context."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._sender: Any = None

    def _open(self) -> None:
        import SpoutGL

        sender = SpoutGL.SpoutSender()
        if not sender.createOpenGL():
            raise TextureError(f"{self.url}: {NO_OPENGL}")
        sender.setSenderName(self.name)
        self._sender = sender

    def _write(self, frame: Frame) -> None:
        from SpoutGL.enums import GL_RGBA

        width, height = frame.size
        if not self._sender.sendImage(np.ascontiguousarray(frame.pixels), width, height, GL_RGBA, False, 0):
            raise TextureError(
                f"{self.url}: Spout refuses the picture of {width}x{height}; see its program SpoutSettings"
            )
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
    newest_python=(3, 13),
    rank=0,
    default_sender="phosphene-in",
    default_sink="phosphene-out",
)
