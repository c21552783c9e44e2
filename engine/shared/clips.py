"""Video clips for measurements: the middle square of each frame, scaled to one size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def read_square_frames(path: Path, side: int, count: int, spread: bool = False) -> list[NDArray[np.uint8]]:
    """Return up to ``count`` frames of a video, RGB uint8 (side, side, 3): the first ones, or ``spread`` over the clip.

    Raises OSError if the file cannot be opened, ``av.FFmpegError`` if it cannot be decoded.
    """
    import av

    with av.open(str(path)) as container:
        decoded = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        if spread:
            frames = list(decoded)
            chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, count).astype(int)]
        else:
            chosen = list(islice(decoded, count))
    return [_crop_square(picture, side) for picture in chosen]


def _crop_square(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    edge = min(picture.shape[:2])
    y, x = (picture.shape[0] - edge) // 2, (picture.shape[1] - edge) // 2
    square = picture[y : y + edge, x : x + edge]
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
