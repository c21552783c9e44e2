"""``ndi:NAME``: NDI over the network, on every platform. A source is found by its full name, its stream name or a part of it."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import numpy as np

from bridge.textures.base import Sink, Source, SourceLost, TextureError
from engine.shared.frame import Frame, Pixels

MISSING = "NDI needs the package cyndilib: pip install 'phosphene[ndi]'"
#: Seconds without a connection until a sender counts as gone, and of looking until the search begins afresh.
SETTLE, PATIENCE = 2.0, 3.0


def available() -> str:
    """ "" where NDI can be used, else the line that makes it so."""
    try:
        import cyndilib  # noqa: F401
    except ImportError:
        return MISSING
    return ""


def names(seconds: float = 3.0) -> list[str]:
    """The NDI sources on the network: three searches within ``seconds``, put together."""
    from cyndilib.finder import Finder

    found: dict[str, None] = {}
    for _ in range(3):
        finder = Finder()
        finder.open()
        limit = time.monotonic() + seconds / 3
        while time.monotonic() < limit:
            finder.wait_for_sources(0.2)
            found |= dict.fromkeys(finder.get_source_names())
        finder.close()
    return sorted(found)


def match(wanted: str, found: list[str]) -> str | None:
    """The name in ``found`` that ``wanted`` means: the full name, the stream's own in brackets, then any part; empty: the first."""
    for same in (
        lambda name: name == wanted,
        lambda name: name.endswith(f"({wanted})"),
        lambda name: wanted.lower() in name.lower(),
    ):
        for name in found:
            if same(name):
                return name
    return None


class NdiSource(Source):
    """Receives through a frame synchroniser; a frame counts as new when its time stamp is."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name
        self._finder: Any = None
        self._receiver: Any = None
        self._last: object = None
        self._looking_since = 0.0

    def _open(self) -> None:
        from cyndilib.finder import Finder
        from cyndilib.receiver import Receiver
        from cyndilib.video_frame import VideoFrameSync
        from cyndilib.wrapper.ndi_recv import RecvBandwidth, RecvColorFormat

        # Without mDNS a finder asks one sender process of a machine, whichever answers: a fresh one may meet another.
        if self._finder is not None and time.monotonic() - self._looking_since > PATIENCE:
            self._finder.close()
            self._finder = None
        if self._finder is None:
            self._finder, self._looking_since = Finder(), time.monotonic()
            self._finder.open()
            self._finder.wait_for_sources(0.25)
        found = match(self._name, list(self._finder.get_source_names()))
        source = self._finder.get_source(found) if found else None
        if source is None:
            raise SourceLost("not on the network yet")
        self._receiver = Receiver(color_format=RecvColorFormat.RGBX_RGBA, bandwidth=RecvBandwidth.highest)
        self._video = VideoFrameSync()
        self._receiver.frame_sync.set_video_frame(self._video)
        self._receiver.set_source(source)
        self._gone_since: float | None = time.monotonic()

    def _read(self, timeout: float) -> Pixels | None:
        limit = time.monotonic() + timeout
        while True:
            self._check_sender()
            self._receiver.frame_sync.capture_video()
            stamp = self._video.get_timestamp_posix()
            width, height = self._video.xres, self._video.yres
            if width and height and stamp != self._last:
                self._last = stamp
                return self._copied(width, height)
            if time.monotonic() >= limit:
                return None
            time.sleep(0.002)

    def _copied(self, width: int, height: int) -> Pixels | None:
        view = np.asarray(self._video.get_array())
        stride = self._video.get_line_stride()
        if view.size < stride * height or stride < width * 4:
            return None
        pixels = (
            view.reshape(-1)[: stride * height].reshape(height, stride)[:, : width * 4].reshape(height, width, 4).copy()
        )
        del view  # the next capture must find no view
        return pixels

    def _check_sender(self) -> None:
        if self._receiver.is_connected():
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = time.monotonic()
        elif time.monotonic() - self._gone_since > SETTLE:
            raise SourceLost("the sender is gone")

    def _close(self) -> None:
        if self._receiver is not None:
            self._receiver.disconnect()
        self._receiver, self._last = None, None

    def close(self) -> None:
        super().close()
        if self._finder is not None:
            self._finder.close()
            self._finder = None


class NdiSink(Sink):
    """Sends RGBA; a change of size opens the sender anew under the same name."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name or "phosphene-out"
        self._sender: Any = None
        self._size = (0, 0)

    def _write(self, frame: Frame) -> None:
        if frame.size != self._size:
            self._close()
            self._start(*frame.size)
        self._sender.write_video(np.ascontiguousarray(frame.pixels).reshape(-1))

    def _start(self, width: int, height: int) -> None:
        from cyndilib.sender import Sender
        from cyndilib.video_frame import VideoSendFrame
        from cyndilib.wrapper.ndi_structs import FourCC

        video = VideoSendFrame()
        video.set_resolution(width, height)
        video.set_frame_rate(Fraction(60))
        video.set_fourcc(FourCC.RGBA)
        self._sender = Sender(self._name, clock_video=False, clock_audio=False)
        self._sender.set_video_frame(video)
        self._sender.open()
        self._size = (width, height)

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._sender, self._size = None, (0, 0)
