"""``ndi:NAME``: NDI over the network, on every platform. NAME is the full name, the stream's name or a part of it."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import numpy as np

from bridge.textures.base import Sink, Source, SourceLost, TextureError, Transport, match_sender
from engine.shared.frame import Frame, Pixels

#: A sender without a connection counts as gone after this time.
DISCONNECT_SECONDS = 2.0
#: A search without a result starts again after this time.
SEARCH_SECONDS = 3.0
#: Time between two attempts to get a name that another program has.
NAME_RETRY_SECONDS = 5.0


def list_senders(seconds: float = 3.0) -> list[str]:
    """Return the NDI senders on the network, the union of three searches within ``seconds``."""
    from cyndilib.finder import Finder

    names: set[str] = set()
    for _ in range(3):
        finder = Finder()
        finder.open()
        limit = time.perf_counter() + seconds / 3
        while time.perf_counter() < limit:
            finder.wait_for_sources(0.2)
            names |= set(finder.get_source_names())
        finder.close()
    return sorted(names)


class NdiSource(Source):
    """Receives through a frame synchroniser. A frame is new if its timestamp is."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._finder: Any = None
        self._receiver: Any = None
        self._timestamp: object = None
        self._search_start = 0.0

    def _open(self) -> None:
        from cyndilib.finder import Finder
        from cyndilib.receiver import Receiver
        from cyndilib.video_frame import VideoFrameSync
        from cyndilib.wrapper.ndi_recv import RecvBandwidth, RecvColorFormat

        # Without mDNS a finder asks one sender process of a machine, whichever answers: a new one may reach another.
        if self._finder is not None and time.perf_counter() - self._search_start > SEARCH_SECONDS:
            self._finder.close()
            self._finder = None
        if self._finder is None:
            self._finder, self._search_start = Finder(), time.perf_counter()
            self._finder.open()
            self._finder.wait_for_sources(0.25)
        sender_name = match_sender(self.name, list(self._finder.get_source_names()))
        sender = self._finder.get_source(sender_name) if sender_name else None
        if sender is None:
            raise SourceLost("not on the network yet")
        self._receiver = Receiver(color_format=RecvColorFormat.RGBX_RGBA, bandwidth=RecvBandwidth.highest)
        self._video = VideoFrameSync()
        self._receiver.frame_sync.set_video_frame(self._video)
        self._receiver.set_source(sender)
        self._disconnected_since: float | None = time.perf_counter()

    def _read(self, timeout: float) -> Pixels | None:
        limit = time.perf_counter() + timeout
        while True:
            self._check_connection()
            self._receiver.frame_sync.capture_video()
            timestamp = self._video.get_timestamp_posix()
            width, height = self._video.xres, self._video.yres
            if width and height and timestamp != self._timestamp:
                self._timestamp = timestamp
                return self._copy_pixels(width, height)
            if time.perf_counter() >= limit:
                return None
            time.sleep(0.002)

    def _copy_pixels(self, width: int, height: int) -> Pixels | None:
        view = np.asarray(self._video.get_array())
        stride = self._video.get_line_stride()
        if view.size < stride * height or stride < width * 4:
            return None
        rows = view.reshape(-1)[: stride * height].reshape(height, stride)
        pixels = rows[:, : width * 4].reshape(height, width, 4).copy()
        del view, rows  # the next capture fails while the buffer has a view
        return pixels

    def _check_connection(self) -> None:
        if self._receiver.is_connected():
            self._disconnected_since = None
        elif self._disconnected_since is None:
            self._disconnected_since = time.perf_counter()
        elif time.perf_counter() - self._disconnected_since > DISCONNECT_SECONDS:
            raise SourceLost("the sender is gone")

    def _close(self) -> None:
        if self._receiver is not None:
            self._receiver.disconnect()
        self._receiver, self._timestamp = None, None

    def close(self) -> None:
        """Close the receiver, and the search that outlives it while the sender is away."""
        super().close()
        if self._finder is not None:
            self._finder.close()
            self._finder = None


class NdiSink(Sink):
    """Sends RGBA. A change of size reopens the sender under the same name, which only one program can have."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._sender: Any = None
        self._size = (0, 0)
        self._retry_at = 0.0

    def _write(self, frame: Frame) -> None:
        if frame.size != self._size:
            if time.perf_counter() < self._retry_at:
                raise self._name_error()
            self._close()
            self._open_sender(*frame.size)
        self._sender.write_video(np.ascontiguousarray(frame.pixels).reshape(-1))

    def _open_sender(self, width: int, height: int) -> None:
        from cyndilib.audio_frame import AudioSendFrame
        from cyndilib.sender import Sender
        from cyndilib.video_frame import VideoSendFrame
        from cyndilib.wrapper.ndi_structs import FourCC

        video = VideoSendFrame()
        video.set_resolution(width, height)
        video.set_frame_rate(Fraction(60))
        video.set_fourcc(FourCC.RGBA)
        sender = Sender(self.name, clock_video=False, clock_audio=False)
        sender.set_video_frame(video)
        sender.set_audio_frame(AudioSendFrame())  # stays silent; without one, a failure to open is a crash
        try:
            sender.open()
        except MemoryError:
            self._retry_at = time.perf_counter() + NAME_RETRY_SECONDS
            raise self._name_error() from None
        self._sender, self._size = sender, (width, height)

    def _name_error(self) -> TextureError:
        return TextureError(f"{self.url}: another program on this machine sends as {self.name}; choose another name")

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._sender, self._size = None, (0, 0)


TRANSPORT = Transport(
    scheme="ndi",
    title="NDI",
    source=NdiSource,
    sink=NdiSink,
    names=list_senders,
    package="cyndilib",
    install="phosphene[ndi]",
    rank=1,
    default_sink="phosphene-out",
)
