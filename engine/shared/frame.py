"""Frame: one picture, as both processes and every transport handle it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
#: Longest side of a frame that crosses between the processes, in pixels.
MAX_SIDE = 2048


@dataclass(frozen=True)
class Frame:
    """A picture: RGBA, uint8, (height, width, 4), top row first, sRGB.

    ``sequence`` counts the source's frames. ``captured_at`` is the time of the texture's arrival, in monotonic seconds.
    ``snapshot`` is the number of the parameter snapshot that an output was rendered with, 0 for an input.
    """

    pixels: Pixels
    sequence: int = 0
    captured_at: float = field(default_factory=time.perf_counter)
    snapshot: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]
