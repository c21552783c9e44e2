"""``file:PATH``: a video or image that PyAV opens, looped at its frame rate; as a sink, a recording in real time."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from bridge.images import resize
from bridge.textures.base import Sink, Source, SourceLost, TextureError, Transport
from engine.shared.frame import Frame, Pixels

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
#: Frame rate of an image, in frames a second.
STILL_RATE = 25.0
#: Free disk space from which a recording continues after the disk was full.
MIN_FREE_BYTES = 64 << 20
#: A reader that is later than this skips to the present frame.
MAX_DELAY_SECONDS = 0.1
log = logging.getLogger(__name__)


class FileSource(Source):
    """Plays the file in a loop. A late reader gets the present frame, not the backlog."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._path = Path(name).expanduser()
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._container: Any = None
        self._start = 0.0
        self._next: tuple[float, Any] | None = None

    def _open(self) -> None:
        if not self._path.is_file():
            raise TextureError(f"{self.url}: no such file")
        try:
            self._container = av.open(str(self._path))
            stream = self._container.streams.video[0]
        except IndexError:
            raise TextureError(f"{self.url}: the file has no video stream") from None
        except FFmpegError as error:
            raise TextureError(f"{self.url}: not a video or image ({error.strerror})") from None
        stream.thread_type = "AUTO"
        self._frames = self._decode(stream)
        self._start, self._next = time.monotonic(), None

    def _decode(self, stream: Any) -> Iterator[tuple[float, Any]]:
        """Yield (seconds since the start, frame) in an endless loop. Raises SourceLost if no frame can be decoded."""
        period = 1.0 / float(stream.average_rate or STILL_RATE)
        offset = 0.0
        while True:
            last, count = 0.0, 0
            first: float | None = None
            for frame in self._container.decode(stream):
                timestamp = frame.time if frame.time is not None else count * period
                first = timestamp if first is None else first
                last, count = timestamp - first, count + 1
                yield offset + last, frame
            if count == 0:
                raise SourceLost("no frame can be decoded")
            offset += last + period
            self._container.seek(0)

    def _read(self, timeout: float) -> Pixels | None:
        try:
            due, frame = self._next or next(self._frames)
            now = time.monotonic() - self._start
            while now - due > MAX_DELAY_SECONDS:  # but show at least one frame of each loop
                later = next(self._frames)
                if later[0] > now:
                    self._next = later
                    return frame.to_ndarray(format="rgba")
                due, frame = later
        except FFmpegError as error:
            raise SourceLost(f"decoding failed ({error.strerror})") from None
        if due - now > timeout:
            self._next = (due, frame)
            time.sleep(timeout)
            return None
        time.sleep(max(0.0, due - now))
        self._next = None
        return frame.to_ndarray(format="rgba")

    def _close(self) -> None:
        self._container.close()


def check_recording(path: Path) -> None:
    """Check that a recording can be written to ``path``. Raises TextureError."""
    if path.suffix.lower() not in CODECS:
        raise TextureError(f"file:{path}: the file name must end in {', '.join(CODECS)}")
    if not path.parent.is_dir():
        raise TextureError(f"file:{path}: no such folder: {path.parent}")


class VideoWriter:
    """Video file of frames with timestamps, or at a fixed rate. The first frame sets the size, rounded down to even.

    The file is written in fragments, so that it plays even after a power failure during the recording.
    """

    def __init__(self, path: Path, rate: Fraction | None = None, lossless: bool = False) -> None:
        check_recording(path)
        fragments = {"flush_packets": "1"}
        if path.suffix.lower() in (".mp4", ".mov"):
            fragments |= {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"}
        try:
            self._container = av.open(str(path), "w", options=fragments if rate is None else {})
        except (FFmpegError, OSError) as error:
            raise TextureError(f"file:{path}: not writable ({error.strerror})") from None
        self._codec, self._rate = CODECS[path.suffix.lower()], rate
        self._stream: Any = None
        self._last_pts, self._failed = -1, False
        self._crf = "0" if lossless else "18"

    def write(self, pixels: Pixels, seconds: float | None = None) -> None:
        """Add RGBA ``pixels`` at ``seconds`` from the start, or as the next frame at the fixed rate."""
        height, width = pixels.shape[:2]
        if self._stream is None:
            self._stream = self._container.add_stream(self._codec, rate=self._rate or Fraction(60))
            self._stream.width, self._stream.height = width - width % 2, height - height % 2
            self._stream.pix_fmt = "yuv420p"
            quality = (
                {"crf": self._crf}
                if self._codec == "libx264"
                else {"crf": "24", "b:v": "0", "deadline": "realtime", "cpu-used": "8"}
            )
            self._stream.options = quality | ({"preset": "veryfast"} if self._codec == "libx264" else {})
            base = 1 / self._rate if self._rate else Fraction(1, 90_000)
            self._stream.codec_context.time_base = base
        if (width, height) != (self._stream.width, self._stream.height):
            even = (self._stream.width, self._stream.height)
            one_pixel_over = 0 <= width - even[0] <= 1 and 0 <= height - even[1] <= 1
            pixels = pixels[: even[1], : even[0]] if one_pixel_over else resize(pixels, *even)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgba")
        pts = self._last_pts + 1 if seconds is None else round(seconds * 90_000)
        self._last_pts = frame.pts = max(pts, self._last_pts + 1)
        frame.time_base = self._stream.codec_context.time_base
        self._mux(frame)

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        try:
            if self._stream is not None and not self._failed:
                self._mux(None)
        finally:
            self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (FFmpegError, OSError):
            self._failed = True  # flushing the encoder after a failed write aborts the process
            raise


def _next_free_path(path: Path) -> Path:
    """Return the first path of ``show-2.mp4``, ``show-3.mp4`` … that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return next(candidate for candidate in candidates if not candidate.exists())


class FileSink(Sink):
    """Records each new image once; a repeated one only lasts longer.

    If the disk is full the file is finished, playable up to there. Recording continues in another file once there is
    space again; ``stops`` counts the interruptions.
    """

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self._path = Path(name).expanduser()
        self.stops = 0
        check_recording(self._path)

    def _open(self) -> None:
        path = self._path
        if self.stops:
            if shutil.disk_usage(self._path.parent).free < MIN_FREE_BYTES:
                raise TextureError(f"{self.url}: the disk is full")
            path = _next_free_path(path)
            log.info("recording continues in %s", path)
        self._writer = VideoWriter(path)
        self._start: float | None = None
        self._last_pixels: Pixels | None = None

    def _write(self, frame: Frame) -> None:
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        if frame.pixels is not self._last_pixels:
            try:
                self._writer.write(frame.pixels, now - self._start)
            except (FFmpegError, OSError) as error:
                self._is_open = False
                self.stops += 1
                with contextlib.suppress(FFmpegError, OSError):
                    self._close()
                reason = error.strerror or str(error)
                raise TextureError(
                    f"{self.url}: recording stopped ({reason}); it will continue in a new file"
                ) from None
            self._last_pixels = frame.pixels

    def _close(self) -> None:
        self._writer.close()


TRANSPORT = Transport(scheme="file", title="Files", source=FileSource, sink=FileSink, names=lambda: ["PATH"])
