"""From one stream to another: both are run on the same frames while the picture goes over."""

from __future__ import annotations

import time
from collections.abc import Sequence

import cv2
import numpy as np

from engine.diffusion.stream import Stream
from engine.shared.frame import Frame


class StreamCrossfade:
    """``old`` goes on beside the stream that has taken its place, for ``seconds``; then it is let go of."""

    def __init__(self, old: Stream, seconds: float) -> None:
        self.old, self._seconds = old, seconds
        self._start = time.monotonic()
        self._last: Frame | None = None
        self._begun = False  # whether the new stream has given a frame yet

    @property
    def share(self) -> float:
        """How far the new stream has come, 0 to 1."""
        return min((time.monotonic() - self._start) / self._seconds, 1.0) if self._seconds > 0 else 1.0

    def mixed(self, frames: Sequence[Frame], finished: list[Frame] | None) -> list[Frame] | None:
        """What the new stream ``finished`` of ``frames``, mixed with what the old one makes of them; the old one alone at first."""
        for frame in self.old.step(frames) or ():
            self._last = frame
        if self._last is None:
            return finished
        if not finished:
            return finished if self._begun else [self._last]
        self._begun = True
        return [blend_frames(self._last, frame, self.share) for frame in finished]


def blend_frames(old: Frame, new: Frame, share: float) -> Frame:
    """``new`` over ``old`` at ``share``, in the new one's size and under its numbers."""
    before = old.pixels if old.size == new.size else cv2.resize(old.pixels, new.size, interpolation=cv2.INTER_AREA)
    mixed = np.asarray(cv2.addWeighted(before, 1.0 - share, new.pixels, share, 0.0))
    return Frame(mixed, new.sequence, new.captured_at, new.snapshot)
