"""What every transport shares: the life cycle, the counters, and the one place where colour order and shape are converted."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

import numpy as np

from engine.shared.frame import Frame, Pixels

log = logging.getLogger(__name__)
RETRY = 0.5


class TextureError(Exception):
    """What the user must know about a source or sink that cannot work: one line with the mend."""


class SourceLost(Exception):
    """The other side vanished; the base closes and opens again until it is back."""


class Source:
    """Frames from one transport. A transport overrides ``_open``, ``_read`` and ``_close``.

    ``_read`` returns RGBA pixels or None, and raises ``Lost`` when its sender is gone. ``frames`` counts what was
    read, ``losses`` how often the sender vanished. Not thread-safe: one thread reads.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.frames = self.losses = 0
        self._is_open = False
        self._retry_at = 0.0

    def open(self) -> Self:
        """Opens now, so that a mistake shows at once. Raises TextureError."""
        try:
            self._open()
            self._is_open = True
        except SourceLost:
            self._retry_at = time.monotonic() + RETRY
        return self

    def read(self, timeout: float) -> Frame | None:
        """The next frame, or None after ``timeout`` seconds, also while the sender is away."""
        if not self._is_open and not self._reopened(timeout):
            return None
        try:
            pixels = self._read(timeout)
        except SourceLost as error:
            self.losses += 1
            log.warning("%s: %s; waiting for it to come back", self.url, error)
            self._shut()
            return None
        if pixels is None:
            return None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size:
            raise TextureError(f"a picture that cannot be used: {'×'.join(map(str, pixels.shape))}, {pixels.dtype}")
        self.frames += 1
        return Frame(pixels, self.frames, time.monotonic())

    def _reopened(self, timeout: float) -> bool:
        wait = self._retry_at - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
            return False
        try:
            self._open()
        except (SourceLost, TextureError):
            self._retry_at = time.monotonic() + RETRY
            return False
        self._is_open = True
        return True

    def _shut(self) -> None:
        self._is_open = False
        self._retry_at = time.monotonic() + RETRY
        self._close()

    def close(self) -> None:
        """Lets go of the transport."""
        if self._is_open:
            self._is_open = False
            self._close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Opens the transport. Raises TextureError (the user's mistake) or Lost (not there yet)."""

    def _read(self, timeout: float) -> Pixels | None:
        raise SourceLost("this source gives nothing")

    def _close(self) -> None:
        """Closes the transport."""


class Sink:
    """Takes frames for one transport. A transport overrides ``_open``, ``_write`` and ``_close``.

    ``frames`` counts what was written. Opened on its own thread by the show, which is also the one that writes.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.frames = 0
        self._is_open = False

    def open(self) -> Self:
        """Opens the transport. Raises TextureError."""
        self._open()
        self._is_open = True
        return self

    def write(self, frame: Frame) -> None:
        """Sends ``frame``, opening first where needed."""
        if not self._is_open:
            self.open()
        self._write(frame)
        self.frames += 1

    def close(self) -> None:
        """Ends the transmission."""
        if self._is_open:
            self._is_open = False
            self._close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Opens the transport."""

    def _write(self, frame: Frame) -> None:
        """Sends one frame."""

    def _close(self) -> None:
        """Closes the transport."""


class Rate:
    """Paces a source that has no clock of its own: ``wait`` sleeps until the next of ``fps`` moments a second."""

    def __init__(self, fps: float) -> None:
        self.period = 1.0 / fps
        self._next = time.monotonic()

    def wait(self, timeout: float) -> bool:
        """True at the next moment, False where ``timeout`` seconds end before it. A late caller starts anew: no catching up."""
        now = time.monotonic()
        if self._next - now > timeout:
            time.sleep(timeout)
            return False
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next + self.period, now)
        return True
