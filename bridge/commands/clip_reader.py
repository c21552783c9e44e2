"""Reads the frames of a video or of a folder of images, in order."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from av.error import FFmpegError

from bridge.errors import UserError
from bridge.file_reader import FileReader
from bridge.images import rgb_to_rgba
from bridge.textures.file import OPEN_SECONDS, STILL_RATE
from bridge.video_files import open_video
from engine.shared.frame import Pixels
from engine.shared.parameter import InvalidValue
from engine.shared.user_files import read_image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class ClipReader:
    """The frames of a video or folder as RGBA: ``count`` frames (0: unknown) at ``rate`` per second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: list[Path] = []
        self.rate = Fraction(round(STILL_RATE))
        if path.is_dir():
            self._images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            self.count = len(self._images)
            if not self.count:
                raise UserError(f"{path}: no images in this folder ({' '.join(sorted(IMAGE_SUFFIXES))})")
            return
        try:
            container, stream = FileReader(OPEN_SECONDS).call(str(path), lambda: open_video(path))
        except InvalidValue:
            raise
        except (FileNotFoundError, ValueError):
            raise UserError(f"{path}: no such file or folder") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be opened as a video: {error.strerror}") from None
        self.count, self.rate = stream.frames, Fraction(stream.average_rate or self.rate)
        container.close()

    def __iter__(self) -> Iterator[Pixels]:
        for path in self._images:
            try:
                pixels = read_image(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read as an image: {error.strerror}") from None
            yield rgb_to_rgba(pixels[..., ::-1])
        if not self._images:
            try:
                container, stream = open_video(self._path)
                with container:
                    for frame in container.decode(stream):
                        yield frame.to_ndarray(format="rgba")
            except (FFmpegError, OSError) as error:
                raise UserError(f"{self._path}: decoding failed ({error.strerror})") from None
