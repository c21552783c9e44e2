"""Base of every transport: its registration, the life cycle of sources and sinks, and the check of pixels."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from engine.shared.frame import Frame, Pixels

log = logging.getLogger(__name__)
#: Pause between two attempts to reopen a source.
RETRY_SECONDS = 0.5
PLATFORM_NAMES = {"win32": "Windows", "darwin": "macOS", "linux": "Linux"}


class TextureError(Exception):
    """A source or sink that cannot work: one line for the user, with the remedy."""


class SourceLost(Exception):
    """The sender is gone; ``Source`` closes the transport and reopens it until the sender is back."""


class Endpoint:
    """Life cycle of a source or sink. A transport overrides ``_open`` and ``_close``.

    ``url`` is the whole URL, ``name`` the part after the scheme. ``frames`` counts the frames that passed. ``path`` is
    the file that is read or written, None where there is none.
    """

    path: Path | None = None

    def __init__(self, url: str, name: str = "") -> None:
        self.url, self.name = url, name
        self.frames = 0
        self._is_open = False

    def open(self) -> Self:
        """Open the transport. Raises TextureError."""
        self._open()
        self._is_open = True
        return self

    def close(self) -> None:
        """Close the transport."""
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
        """Open the transport. Raises TextureError for a user's mistake; a source may raise SourceLost."""

    def _close(self) -> None:
        """Close the transport."""


class Source(Endpoint):
    """Frames from one transport, which overrides ``_open``, ``_read`` and ``_close``.

    ``losses`` counts how often the sender vanished. Not thread-safe: one thread reads.
    """

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self.losses = 0
        self._retry_at = 0.0

    def open(self) -> Self:
        """Open the transport, or schedule a retry if there is no sender yet. Raises TextureError."""
        try:
            return super().open()
        except SourceLost:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        return self

    def read(self, timeout: float) -> Frame | None:
        """Return the next frame, or None after ``timeout`` seconds, also while there is no sender.

        Raises TextureError if the transport returns anything but RGBA uint8 of shape (height, width, 4).
        """
        if not self._is_open and not self._reopen(timeout):
            return None
        try:
            pixels = self._read(timeout)
        except SourceLost as error:
            self.losses += 1
            log.warning("%s: %s; waiting for it to come back", self.url, error)
            self._is_open = False
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._close()
            return None
        if pixels is None:
            return None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size:
            shape = "×".join(map(str, pixels.shape))
            raise TextureError(f"unsupported image format: {shape}, {pixels.dtype}")
        self.frames += 1
        return Frame(pixels, self.frames, time.monotonic())

    def _reopen(self, timeout: float) -> bool:
        wait = self._retry_at - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
            return False
        try:
            self._open()
        except (SourceLost, TextureError):
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return False
        self._is_open = True
        return True

    def _read(self, timeout: float) -> Pixels | None:
        """Return RGBA pixels, or None after ``timeout`` seconds. Raises SourceLost if the sender is gone."""
        raise NotImplementedError


class Sink(Endpoint):
    """Takes frames for one transport, which overrides ``_open``, ``_write`` and ``_close``.

    It opens on the thread that writes, as OpenGL contexts require.
    """

    def reserve(self, overwrite: bool = False, inputs: Sequence[Path] = ()) -> None:
        """Claim what will be written, before the first frame. Raises TextureError.

        With ``overwrite`` a finished file replaces an earlier one, unless that is one of the ``inputs``.
        """

    def keep_earlier(self) -> None:
        """Let the file stay that ``overwrite`` would replace: the show did not end in order."""

    def describe(self) -> str:
        """Return where frames go, for people."""
        return self.url

    def write(self, frame: Frame) -> None:
        """Send ``frame``, and open the transport first if needed."""
        if not self._is_open:
            self.open()
        self._write(frame)
        self.frames += 1

    def _write(self, frame: Frame) -> None:
        """Send one frame."""
        raise NotImplementedError


@dataclass(frozen=True)
class Transport:
    """The registration of a transport: its module, named like the scheme, assigns one to ``TRANSPORT``.

    ``source`` and ``sink`` are called with the whole URL and the part after the scheme; None where the transport has
    no such direction. ``names`` lists what can be opened now, to be written after ``scheme:``; with ``devices``, an
    empty list means that no device is connected.

    ``platform`` is the only ``sys.platform`` that has the transport; empty: all. ``package`` is the optional package
    that it needs, ``module`` the module to import from it (default: the package's name), and ``install`` the argument
    of ``pip install`` (default: the package's name).

    ``phosphene run`` without ``--source`` or ``--sink`` opens ``default_source`` and ``default_sink`` of the usable
    transport of the lowest ``rank`` that has one.
    """

    scheme: str
    title: str
    source: Callable[[str, str], Source] | None = None
    sink: Callable[[str, str], Sink] | None = None
    names: Callable[[], Sequence[str]] = tuple
    devices: bool = False
    platform: str = ""
    package: str = ""
    module: str = ""
    install: str = ""
    rank: int = 100
    default_source: str | None = None
    default_sink: str | None = None

    @property
    def on_this_platform(self) -> bool:
        """True if the operating system has this transport."""
        return self.platform in ("", sys.platform)

    def unavailable_reason(self) -> str:
        """Return why the transport cannot be used here, with the remedy; "" if it can."""
        if not self.on_this_platform:
            return f"{self.title} exists on {PLATFORM_NAMES[self.platform]} only; use ndi: here"
        if self.package:
            try:
                importlib.import_module(self.module or self.package)
            except ImportError:
                install = self.install or self.package
                return f"{self.title} needs the package {self.package}: pip install '{install}'"
        return ""


class FramePacer:
    """Paces a source that has no clock: ``wait`` sleeps until the next frame is due, ``fps`` times a second."""

    def __init__(self, fps: float) -> None:
        self.period = 1.0 / fps
        self._next = time.monotonic()

    def wait(self, timeout: float) -> bool:
        """Return True when the next frame is due, or False after ``timeout`` seconds.

        A late caller gets one frame and a new schedule, not the missed frames.
        """
        now = time.monotonic()
        if self._next - now > timeout:
            time.sleep(timeout)
            return False
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next + self.period, now)
        return True
