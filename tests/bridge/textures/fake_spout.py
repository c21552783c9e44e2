"""A stand-in for SpoutGL 0.1.1: its names, argument orders (all positional) and return values, and Spout's senders.

Read off SpoutGL's binding and the SDK that it wraps. ``FakeSpout.install`` puts it where ``import SpoutGL`` finds it.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

GL_RGBA, GL_BGRA_EXT, GL_RGB, GL_BGR_EXT = 0x1908, 0x80E1, 0x1907, 0x80E0


class FakeSpout:
    """The senders of a machine, and what programs do with OpenGL. ``pictures`` are RGBA, top row first.

    ``stale`` names are listed though their program has died. ``empty_reads`` is how many frames a receiver reads as
    zeros after it has connected, because its pixel buffers are not filled yet.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, np.ndarray] = {}
        self.frame_numbers: dict[str, int] = {}
        self.stale: list[str] = []
        self.has_opengl, self.takes_images, self.empty_reads = True, True, 2
        self.contexts_created, self.contexts_open = 0, 0
        self.wrong_thread: list[str] = []

    def send(self, name: str, picture: np.ndarray) -> None:
        """Send a frame, as another program does."""
        self.pictures[name] = picture
        self.frame_numbers[name] = self.frame_numbers.get(name, 0) + 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let ``import SpoutGL`` find this, on a system that says that it is Windows."""
        spout = self

        class Common:
            def __init__(self) -> None:
                self._context_thread = 0

            def __enter__(self) -> Any:
                return self

            def createOpenGL(self) -> bool:  # noqa: N802 -- SpoutGL's names, here and below
                if not spout.has_opengl:
                    return False
                spout.contexts_created += 1
                spout.contexts_open += 1
                self._context_thread = threading.get_ident()
                return True

            def closeOpenGL(self) -> bool:  # noqa: N802
                self._check_thread("closeOpenGL")
                spout.contexts_open -= 1
                self._context_thread = 0
                return True

            def _check_thread(self, function: str) -> bool:
                good = self._context_thread == threading.get_ident()
                if not good:
                    spout.wrong_thread.append(function)
                return good

        class SpoutReceiver(Common):
            def __init__(self) -> None:
                super().__init__()
                self._name, self._connected, self._size = "", "", (0, 0)
                self._updated, self._new, self._seen, self._reads = False, False, 0, 0

            def __exit__(self, *_: object) -> None:
                self.releaseReceiver()

            def setReceiverName(self, name: str, /) -> None:  # noqa: N802
                self._name = name

            def getSenderList(self) -> list[str]:  # noqa: N802
                return [*spout.pictures, *spout.stale]

            def getActiveSender(self) -> str:  # noqa: N802
                return next(iter(spout.pictures), "")

            def receiveImage(self, buffer: Any, gl_format: int, invert: bool, host_fbo: int, /) -> bool:  # noqa: N802
                assert (gl_format, host_fbo) == (GL_RGBA, 0)
                self._new = False
                if not self._check_thread("receiveImage"):
                    return False
                name = self._name or self.getActiveSender()
                if name not in spout.pictures:
                    self._connected = ""
                    return False
                picture = spout.pictures[name]
                height, width = picture.shape[:2]
                if buffer is not None and np.asarray(buffer).nbytes < self._size[0] * self._size[1] * 4:
                    raise BufferError("Buffer not large enough")
                if self._connected != name or self._size != (width, height):
                    self._reads = 0 if self._connected != name else self._reads
                    self._connected, self._size, self._updated, self._seen = name, (width, height), True, 0
                    return True
                if buffer is None:
                    return True
                self._new = spout.frame_numbers[name] != self._seen
                if self._new:
                    self._seen = spout.frame_numbers[name]
                    self._reads += 1
                    rows = picture[::-1] if invert else picture
                    np.asarray(buffer)[...] = 0 if self._reads <= spout.empty_reads else rows
                return True

            def isUpdated(self) -> bool:  # noqa: N802
                updated, self._updated = self._updated, False
                return updated

            def isFrameNew(self) -> bool:  # noqa: N802
                return self._new

            def getSenderWidth(self) -> int:  # noqa: N802
                return self._size[0]

            def getSenderHeight(self) -> int:  # noqa: N802
                return self._size[1]

            def releaseReceiver(self) -> None:  # noqa: N802
                self._connected, self._name = "", ""

        class SpoutSender(Common):
            def __init__(self) -> None:
                super().__init__()
                self._name = ""

            def __exit__(self, *_: object) -> None:
                self.releaseSender()

            def setSenderName(self, name: str, /) -> None:  # noqa: N802
                self._name = name

            def sendImage(  # noqa: N802
                self, pixels: Any, width: int, height: int, gl_format: int, invert: bool, host_fbo: int, /
            ) -> bool:
                assert (gl_format, host_fbo) == (GL_RGBA, 0)
                view = memoryview(pixels)
                if view.nbytes < width * height * 4:
                    raise BufferError("Buffer not large enough")
                if not view.c_contiguous:
                    raise BufferError("Buffer must be contiguous")
                if not spout.takes_images or not self._check_thread("sendImage"):
                    return False
                rows = np.frombuffer(view.tobytes(), np.uint8).reshape(height, width, 4)
                spout.send(self._name, rows[::-1] if invert else rows)
                return True

            def setFrameSync(self, name: str, /) -> None:  # noqa: N802
                assert name == self._name

            def releaseSender(self) -> None:  # noqa: N802
                spout.pictures.pop(self._name, None)

        module, enums, helpers = ModuleType("SpoutGL"), ModuleType("SpoutGL.enums"), ModuleType("SpoutGL.helpers")
        for name, value in {
            "GL_RGBA": GL_RGBA, "GL_BGRA_EXT": GL_BGRA_EXT, "GL_RGB": GL_RGB, "GL_BGR_EXT": GL_BGR_EXT,
        }.items():  # fmt: skip
            setattr(enums, name, value)
        helpers.isBufferEmpty = lambda buffer: not np.asarray(buffer).any()  # type: ignore[attr-defined]
        for name, part in {
            "SpoutReceiver": SpoutReceiver, "SpoutSender": SpoutSender, "enums": enums, "helpers": helpers,
        }.items():  # fmt: skip
            setattr(module, name, part)
        monkeypatch.setitem(sys.modules, "SpoutGL", module)
        monkeypatch.setitem(sys.modules, "SpoutGL.enums", enums)
        monkeypatch.setitem(sys.modules, "SpoutGL.helpers", helpers)
        monkeypatch.setattr(sys, "platform", "win32")
