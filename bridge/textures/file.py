"""``file:PATH``: a video or image that PyAV opens, looped at its frame rate; as a sink, a recording in real time."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from bridge.file_reader import FileReader, expand_user
from bridge.images import resize
from bridge.textures.base import Sink, Source, SourceLost, TextureError, Transport
from bridge.video_files import open_video
from engine.shared.files import claim_new, create_new
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import InvalidValue

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
#: Frame rate of an image, in frames a second.
STILL_RATE = 25.0
#: Time limit to open a video.
OPEN_SECONDS = 10.0
#: Free disk space from which a recording continues after the disk was full.
MIN_FREE_BYTES = 64 << 20
#: A reader that is later than this skips to the present frame.
MAX_DELAY_SECONDS = 0.1
#: Identity of a name that no file has.
FREE = (0, 0)
log = logging.getLogger(__name__)


class FileSource(Source):
    """Plays the file in a loop. A late reader gets the present frame, not the backlog."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        self.path = self._path = expand_user(name)
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._container: Any = None
        self._start = 0.0
        self._next: tuple[float, Any] | None = None

    def _open(self) -> None:
        try:
            self._container, stream = FileReader(OPEN_SECONDS).call(self.url, lambda: open_video(self._path))
        except InvalidValue as error:
            raise TextureError(str(error)) from None
        except (FileNotFoundError, ValueError):
            raise TextureError(f"{self.url}: no such file") from None
        except OSError as error:
            raise TextureError(f"{self.url}: {error.strerror}") from None
        stream.thread_type = "AUTO"
        self._frames = self._decode(stream)
        self._start, self._next = time.perf_counter(), None

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
            now = time.perf_counter() - self._start
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
        else:
            fragments |= {"cluster_time_limit": "1000"}
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


class FileSink(Sink):
    """Records each new image once; a repeated one only lasts longer.

    No existing file is replaced: ``take.mp4`` is followed by ``take-2.mp4``, ``take-3.mp4`` …; ``path`` is the file
    that is written. With ``overwrite`` the recording has such a number until it is finished and only then replaces
    ``take.mp4``, so a crash costs neither of them.

    If the disk is full the file is finished, playable up to there. Recording continues in another file once there is
    space again; ``stops`` counts the interruptions.
    """

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        try:
            self._path = Path(name).expanduser()
        except RuntimeError as error:  # an unknown user
            raise TextureError(f"{url}: {error}") from None
        self._overwrites = False
        self._old_file: tuple[int, int] | None = FREE
        self._written = 0
        self.stops = 0
        check_recording(self._path)

    def reserve(self, overwrite: bool = False, inputs: Sequence[Path] = ()) -> None:
        """Claim the name of the file."""
        try:
            self._old_file = _identify(self._path)
            self._overwrites = overwrite and self._old_file is not None and not _is_any(self._path, inputs)
            self.path = claim_new(self._path, 2 if self._overwrites else 1)
        except OSError as error:
            raise TextureError(f"{self.url}: not writable ({error.strerror})") from None
        if self.path != self._path:
            self.url = f"file:{self.path}"

    def keep_earlier(self) -> None:
        """Let the file stay that ``overwrite`` would replace."""
        self._overwrites = False

    def describe(self) -> str:
        """Return the URL of the file that is written, and what it replaces at the end."""
        return f"{self.url} (replaces {self._path} when it is finished)" if self._overwrites else self.url

    def close(self) -> None:
        """Finish the file, or give its name up if nothing was recorded."""
        super().close()
        if self.path is not None:
            self._finish()

    def _open(self) -> None:
        if self.path is None:
            if self.stops and shutil.disk_usage(self._path.parent).free < MIN_FREE_BYTES:
                raise TextureError(f"{self.url}: the disk is full")
            self.reserve()
        assert self.path is not None
        self._writer = VideoWriter(self.path)
        log.info("recording %s %s", "continues in" if self.stops else "to", self.path)
        self._written = 0
        self._start: float | None = None
        self._last_pixels: Pixels | None = None

    def _write(self, frame: Frame) -> None:
        now = time.perf_counter()
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
            self._written += 1
            self._last_pixels = frame.pixels

    def _close(self) -> None:
        try:
            self._writer.close()
        except (FFmpegError, OSError) as error:
            self._overwrites = False
            log.error("%s: the end of the recording is missing (%s)", self.url, error.strerror or error)
        self._finish()

    def _finish(self) -> None:
        """Delete a file without frames; let a finished one replace the earlier one, if that is as it was."""
        path, self.path = self.path, None
        overwrites, self._overwrites = self._overwrites, False
        assert path is not None
        try:
            if not self._written:
                path.unlink(missing_ok=True)
            elif overwrites:
                if self._old_file == FREE:
                    os.close(create_new(self._path))  # raises if another file has the name now
                elif self._old_file != _identify(self._path):
                    raise FileExistsError(f"{self._path} is another file now")
                os.replace(path, self._path)
                log.info("recorded to %s", self._path)
        except OSError as error:
            log.warning("the recording stays in %s (%s)", path, error.strerror or error)


def _identify(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a regular file, FREE if there is no file, None for anything else and for a link."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return FREE
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_any(path: Path, others: Sequence[Path]) -> bool:
    return any(path.exists() and other.exists() and path.samefile(other) for other in others)


TRANSPORT = Transport(scheme="file", title="Files", source=FileSource, sink=FileSink, names=lambda: ["PATH"])
