"""Crossfade between two streams: both run on the same frames while one picture replaces the other."""

from __future__ import annotations

import time
from collections.abc import Sequence

import cv2
import numpy as np

from engine.diffusion.stream import Stream
from engine.shared.frame import Frame


class StreamCrossfade:
    """The ``old`` stream keeps running beside its successor for ``seconds``."""

    def __init__(self, old: Stream, seconds: float) -> None:
        self.old, self._seconds = old, seconds
        self._start = time.perf_counter()
        self._last_old: Frame | None = None
        self._new_has_output = False

    @property
    def share(self) -> float:
        """The share of the new stream, 0 to 1."""
        return min((time.perf_counter() - self._start) / self._seconds, 1.0) if self._seconds > 0 else 1.0

    def mix(self, frames: Sequence[Frame], finished: list[Frame] | None) -> list[Frame] | None:
        """Return the new stream's ``finished`` frames mixed with the old stream's output for ``frames``.

        Until the new stream has output, the old one is shown alone.
        """
        for frame in self.old.step(frames) or ():
            self._last_old = frame
        if self._last_old is None:
            return finished
        if not finished:
            return finished if self._new_has_output else [self._last_old]
        self._new_has_output = True
        return [blend_frames(self._last_old, frame, self.share) for frame in finished]


def blend_frames(old: Frame, new: Frame, share: float) -> Frame:
    """Return ``new`` over ``old`` at ``share``, in the new frame's size and with its numbers."""
    below = old.pixels if old.size == new.size else cv2.resize(old.pixels, new.size, interpolation=cv2.INTER_AREA)
    mixed = np.asarray(cv2.addWeighted(below, 1.0 - share, new.pixels, share, 0.0))
    return Frame(mixed, new.sequence, new.captured_at, new.snapshot)
