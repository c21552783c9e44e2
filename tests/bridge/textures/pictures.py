"""Pictures that show whether they are upright and have their colours, and readers of sources."""

from __future__ import annotations

import time

import numpy as np

from bridge.textures.base import Source
from engine.shared.frame import Frame, Pixels


def upright(width: int = 32, height: int = 24, shift: int = 0) -> Pixels:
    """Return RGBA with a red top, a blue bottom, and green from left to right."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[..., 0] = np.linspace(250, 10, height)[:, None]
    pixels[..., 1] = (np.linspace(0, 200, width)[None] + shift) % 256
    pixels[..., 2] = np.linspace(10, 250, height)[:, None]
    return pixels


def read_frame(source: Source, seconds: float = 5.0) -> Frame:
    """Return the next frame of ``source``, which must come within ``seconds``."""
    limit = time.perf_counter() + seconds
    while time.perf_counter() < limit:
        frame = source.read(0.05)
        if frame is not None:
            return frame
    raise AssertionError(f"{source.url} gave no frame")
