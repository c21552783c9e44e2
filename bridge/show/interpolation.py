"""Frames between frames, for displays that need a steady rate.

Each shown picture lies between the last two that the engine made. The price is one interval of latency: the picture
runs from the frame before the newest to the newest.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.shared.frame import Frame, Pixels
from engine.shared.optical_flow import FlowPair, OpticalFlow, warp

#: Longer side at which motion is estimated, in pixels: enough for the large motions that are seen, and quick.
MOTION_SIDE = 192
#: A longer interval is a stop and not motion: nothing is interpolated, in seconds.
MAX_INTERVAL_SECONDS = 0.5
#: Share of a new interval in the smoothed one: frames arrive a little early and late, the picture should not.
INTERVAL_SMOOTHING = 0.2


class Interpolator:
    """The last two frames and the motion between them. ``method``: flow, blend or none."""

    def __init__(self) -> None:
        self._estimator = OpticalFlow(fast=True)
        self._previous: Frame | None = None
        self._newest: Frame | None = None
        self._motion: FlowPair | None = None
        self._arrived, self._interval = 0.0, 0.0

    def push(self, frame: Frame, now: float, method: str) -> None:
        """Take a new ``frame`` that arrived ``now``, in seconds."""
        elapsed = now - self._arrived
        if elapsed > MAX_INTERVAL_SECONDS:  # the first frame, or the first one after a stop: no interval is known
            self._interval = 0.0
        elif self._interval == 0.0:
            self._interval = elapsed
        else:
            self._interval += INTERVAL_SMOOTHING * (elapsed - self._interval)
        self._previous, self._newest, self._arrived = self._newest, frame, now
        self._motion = None
        if method == "flow" and self._previous is not None and self._previous.size == frame.size:
            self._motion = self._estimate(self._previous.pixels, frame.pixels)

    def at(self, now: float, method: str) -> Frame | None:
        """Return the picture to show ``now``: between the last two frames, or the newest one."""
        old, new = self._previous, self._newest
        if old is None or new is None or method == "none" or old.size != new.size:
            return new
        if not 0.0 < self._interval <= MAX_INTERVAL_SECONDS:
            return new
        share = min(max((now - self._arrived) / self._interval, 0.0), 1.0)
        if share >= 1.0:
            return new
        first, second = old.pixels, new.pixels
        if self._motion is not None:
            # Each is drawn on its way to the other; where both ways agree, the seam is not seen.
            first = warp(first, self._motion.backward * share)
            second = warp(second, self._motion.forward * (1 - share))
        mixed = np.asarray(cv2.addWeighted(first, 1.0 - share, second, share, 0.0))
        return Frame(mixed, new.sequence, new.captured_at, new.snapshot)

    def _estimate(self, one: Pixels, two: Pixels) -> FlowPair:
        """Return the motion between the pictures in pixels of their own size."""
        height, width = one.shape[:2]
        scale = min(1.0, MOTION_SIDE / max(height, width))
        size = (max(32, round(width * scale)), max(32, round(height * scale)))
        small_one, small_two = (
            cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGBA2GRAY), size, interpolation=cv2.INTER_AREA)
            for picture in (one, two)
        )
        motion = self._estimator.estimate(np.asarray(small_one, np.uint8), np.asarray(small_two, np.uint8))
        grow = np.array([width / size[0], height / size[1]], np.float32)
        return FlowPair(*(np.asarray(cv2.resize(flow, (width, height)) * grow) for flow in motion))
