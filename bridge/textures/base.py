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
        """Open the transport, unless it is open. Raises TextureError."""
        if not self._is_open:
            self._open()
            self._is_open = True
        return self

    def close(self) -> None:
        """Close the transport."""
        if self._is_open:
            self._is_open = False
            self._close()

    def describe(self) -> str:
        """Return where frames come from or go, for people."""
        return self.url

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

    ``losses`` counts how often the sender vanished. That the source waits for its sender is logged once, unless
    ``waits_silently``. Not thread-safe: one thread reads, and the same one closes.
    """

    waits_silently = False

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self.losses = 0
        self._retry_at = 0.0
        self._is_waiting = False
        self._open_error = ""

    def open(self) -> Self:
        """Open the transport, or schedule a retry if there is no sender yet. Raises TextureError."""
        try:
            return super().open()
        except SourceLost as error:
            self._wait_for_sender(f"{error}; waiting for it")
        return self

    def read(self, timeout: float) -> Frame | None:
        """Return the next frame, or None after ``timeout`` seconds, also while there is no sender.

        Raises TextureError if the transport returns anything but RGBA uint8 of shape (height, width, 4), and once for
        each reason why it cannot be opened.
        """
        if not self._is_open and not self._reopen(timeout):
            return None
        try:
            pixels = self._read(timeout)
        except SourceLost as error:
            self.losses += not self._is_waiting
            self._is_open = False
            self._wait_for_sender(f"{error}; waiting for it to come back")
            self._close()
            return None
        if pixels is None:
            return None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or not pixels.size:
            shape = "×".join(map(str, pixels.shape))
            raise TextureError(f"{self.url}: unsupported image format: {shape}, {pixels.dtype}")
        self.frames += 1
        self._is_waiting, self._open_error = False, ""
        return Frame(pixels, self.frames, time.perf_counter())

    def _reopen(self, timeout: float) -> bool:
        wait = self._retry_at - time.perf_counter()
        if wait > 0:
            time.sleep(min(wait, timeout))
            return False
        try:
            self._open()
        except SourceLost as error:
            self._wait_for_sender(f"{error}; waiting for it")
            return False
        except TextureError as error:
            self._retry_at = time.perf_counter() + RETRY_SECONDS
            if str(error) == self._open_error:
                return False
            self._open_error = str(error)
            raise
        self._is_open = True
        return True

    def _wait_for_sender(self, reason: str) -> None:
        """Schedule the next attempt to open, and log the reason if the last frame came before it."""
        self._retry_at = time.perf_counter() + RETRY_SECONDS
        if not self._is_waiting and not self.waits_silently:
            log.warning("%s: %s", self.url, reason)
        self._is_waiting = True

    def _read(self, timeout: float) -> Pixels | None:
        """Return RGBA pixels, or None after ``timeout`` seconds. Raises SourceLost if the sender is gone."""
        raise NotImplementedError


class PlaceholderSource(Source):
    """Shows ``placeholder`` until the first frame of ``sender``, which then takes its place for good."""

    def __init__(self, placeholder: Source, sender: Source) -> None:
        super().__init__(placeholder.url, placeholder.name)
        self._placeholder, self._sender = placeholder, sender
        self._sender_seen = False
        sender.waits_silently = True

    def describe(self) -> str:
        """Return the URL of the sender that is shown, or both while none was seen."""
        return self.url if self._sender_seen else f"{self.url} until {self._sender.url} appears"

    def _open(self) -> None:
        self._placeholder.open()
        self._sender.open()

    def _read(self, timeout: float) -> Pixels | None:
        if not self._sender_seen and (frame := self._look_for_sender()) is not None:
            log.info("%s is there and replaces %s", self._sender.url, self.url)
            self._sender_seen, self.url, self.name = True, self._sender.url, self._sender.name
            self._sender.waits_silently = False
            self._placeholder.close()
            return frame.pixels
        frame = (self._sender if self._sender_seen else self._placeholder).read(timeout)
        return None if frame is None else frame.pixels

    def _look_for_sender(self) -> Frame | None:
        try:
            return self._sender.read(0.0)
        except TextureError as error:
            log.warning("%s", error)
            return None

    def _close(self) -> None:
        self._placeholder.close()
        self._sender.close()


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
    of ``pip install`` (default: the package's name). ``newest_python`` is the last Python that the package has a build
    for; None: every one.

    ``phosphene run`` without ``--source`` or ``--sink`` opens ``default_source`` and ``default_sink`` of the usable
    transport of the lowest ``rank`` that has one. ``default_sender`` is the name of a sender that replaces the default
    source as soon as it is there.
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
    newest_python: tuple[int, int] | None = None
    rank: int = 100
    default_source: str | None = None
    default_sender: str | None = None
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
                if self.newest_python and sys.version_info[:2] > self.newest_python:
                    newest = ".".join(map(str, self.newest_python))
                    return f"{self.title} needs Python {newest} or older: {self.package} has no build for this one"
                install = self.install or self.package
                return f"{self.title} needs the package {self.package}: pip install '{install}'"
        return ""


def match_sender(query: str, names: Sequence[str]) -> str | None:
    """Return the first full name that equals ``query``, else that ends in ``(query)``, else that contains it."""
    criteria = (
        lambda name: name == query,
        lambda name: name.endswith(f"({query})"),
        lambda name: query.lower() in name.lower(),
    )
    return next((name for matches in criteria for name in names if matches(name)), None)


class FramePacer:
    """Paces a source that has no clock: ``wait`` sleeps until the next frame is due, ``fps`` times a second."""

    def __init__(self, fps: float) -> None:
        self.period = 1.0 / fps
        self._next = time.perf_counter()

    def wait(self, timeout: float) -> bool:
        """Return True when the next frame is due, or False after ``timeout`` seconds.

        A late caller gets one frame and a new schedule, not the missed frames.
        """
        now = time.perf_counter()
        if self._next - now > timeout:
            time.sleep(timeout)
            return False
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next + self.period, now)
        return True
