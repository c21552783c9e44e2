"""Reads the frames of a video or of a folder of images, in order."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError

from bridge.errors import UserError
from bridge.images import rgb_to_rgba
from bridge.textures.file import STILL_RATE
from engine.shared.frame import Pixels

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
        elif path.is_file():
            try:
                with av.open(str(path)) as container:
                    stream = container.streams.video[0]
                    self.count, self.rate = stream.frames, Fraction(stream.average_rate or self.rate)
            except (FFmpegError, IndexError):
                raise UserError(f"{path}: cannot be opened as a video") from None
        else:
            raise UserError(f"{path}: no such file or folder")

    def __iter__(self) -> Iterator[Pixels]:
        for path in self._images:
            data = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
            if data is None:
                raise UserError(f"{path}: cannot be read as an image")
            yield rgb_to_rgba(data[..., ::-1])
        if not self._images:
            try:
                with av.open(str(self._path)) as container:
                    for frame in container.decode(video=0):
                        yield frame.to_ndarray(format="rgba")
            except FFmpegError as error:
                raise UserError(f"{self._path}: decoding failed ({error.strerror})") from None
