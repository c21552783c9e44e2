"""Frames between frames, for displays that want a steady rate: each shown picture lies between the last two that the engine made.

The price is one interval of latency: what is shown runs from the frame before the newest to the newest.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.shared.frame import Frame, Pixels

#: Side at which motion is estimated, in pixels: enough for the large motions that are seen, and quick.
SIDE = 192
#: An interval longer than this is no motion but a stop: nothing is drawn between, in seconds.
LONGEST = 0.5


class Interpolator:
    """The last two frames and the motion between them."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._before: Frame | None = None
        self._newest: Frame | None = None
        self._motion: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._arrived, self._interval = 0.0, 0.0

    def push(self, frame: Frame, now: float, way: str) -> None:
        """A new ``frame`` has come, ``now`` in seconds."""
        # Intervals are smoothed: frames arrive a little early and late, and the picture should not.
        passed = now - self._arrived
        self._interval = (
            passed if self._interval == 0.0 or passed > LONGEST else self._interval + 0.2 * (passed - self._interval)
        )
        self._before, self._newest, self._arrived = self._newest, frame, now
        self._motion = None
        if way == "flow" and self._before is not None and self._before.size == frame.size:
            self._motion = self._estimated(self._before.pixels, frame.pixels)

    def at(self, now: float, way: str) -> Frame | None:
        """The picture to show ``now``: between the last two frames, or the newest where there is nothing between."""
        old, new = self._before, self._newest
        if old is None or new is None or way == "none" or old.size != new.size or not 0.0 < self._interval <= LONGEST:
            return new
        share = min(max((now - self._arrived) / self._interval, 0.0), 1.0)
        if share >= 1.0:
            return new
        first, second = old.pixels, new.pixels
        if self._motion is not None:
            there, back = self._motion
            # Each is drawn on its way to the other; where both ways agree, the seam is not seen.
            first, second = _drawn(first, back * share), _drawn(second, there * (1 - share))
        mixed = np.asarray(cv2.addWeighted(first, 1.0 - share, second, share, 0.0))
        return Frame(mixed, new.sequence, new.captured_at, new.snapshot)

    def _estimated(self, one: Pixels, two: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Motion from the first picture to the second and back, (H, W, 2) each, in pixels of the pictures' own size."""
        height, width = one.shape[:2]
        scale = min(1.0, SIDE / max(height, width))
        size = (max(32, round(width * scale)), max(32, round(height * scale)))
        a, b = (
            cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGBA2GRAY), size, interpolation=cv2.INTER_AREA)
            for picture in (one, two)
        )
        grow = np.array([width / size[0], height / size[1]], np.float32)
        there, back = (np.asarray(self._flow.calc(p, q, None)) for p, q in ((a, b), (b, a)))
        return cv2.resize(there, (width, height)) * grow, cv2.resize(back, (width, height)) * grow


def _drawn(picture: Pixels, flow: NDArray[np.float32]) -> Pixels:
    """``picture`` read at each pixel's place plus ``flow``."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
