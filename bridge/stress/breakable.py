"""A source, a camera and a sink that fail on request, and the sink that measures what the audience sees."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from bridge.textures import Sink, Source
from bridge.textures.base import FramePacer, SourceLost
from bridge.textures.camera import CameraSource
from bridge.textures.pattern import draw
from engine.shared.frame import Frame, Pixels

FRAME_RATE = 30.0
SIDE = 256


class BreakableCamera:
    """A camera as OpenCV's ``VideoCapture`` presents one, which can be ``unplugged``."""

    def __init__(self) -> None:
        self.unplugged = False
        self._rate = FramePacer(FRAME_RATE)

    def open_capture(self, _index: int) -> BreakableCamera:
        """Return the camera itself, as ``cv2.VideoCapture(index)`` does."""
        return self

    def isOpened(self) -> bool:  # noqa: N802 -- OpenCV's name
        return not self.unplugged

    def set(self, _property: int, _value: float) -> bool:
        return True

    def read(self) -> tuple[bool, Pixels | None]:
        if self.unplugged:
            return False, None
        self._rate.wait(1.0)
        return True, draw("plasma", SIDE, SIDE, time.perf_counter())[..., :3]

    def release(self) -> None:
        pass


class BreakableSource(Source):
    """A pattern with a ``fault``: "gone", "frozen", "resize", "format", or "" for none. A ``camera`` replaces it."""

    def __init__(self) -> None:
        super().__init__("breakable:")
        self.fault = ""
        self.camera: CameraSource | None = None
        self._rate = FramePacer(FRAME_RATE)

    def _open(self) -> None:
        if self.camera is not None:
            self.camera._open()
        if self.fault == "gone":
            raise SourceLost("injected fault: source gone")

    def _read(self, timeout: float) -> Pixels | None:
        if self.camera is not None:
            return self.camera._read(timeout)
        if self.fault == "gone":
            raise SourceLost("injected fault: source gone")
        if not self._rate.wait(timeout) or self.fault == "frozen":
            time.sleep(0.01)
            return None
        width, height = SIDE, SIDE
        if self.fault == "resize":
            width, height = random.randrange(1, 900), random.randrange(1, 900)
        image = draw("plasma", max(8, width), max(8, height), time.perf_counter())[:height, :width]
        if self.fault == "format":
            return random.choice(_wrong_formats(image))
        return image


def _wrong_formats(image: Pixels) -> tuple[np.ndarray, ...]:
    """Return ``image`` without alpha, as floats, as grey, without rows, and a 16-bit one."""
    return (
        image[..., :3],
        image.astype(np.float32) / 255,
        image[..., 0],
        image[:0],
        np.zeros((4, 4, 4), np.uint16),
    )


class ShownFrame(NamedTuple):
    """When a frame was shown, of which input, with which snapshot (0: untransformed), and its latency in seconds."""

    moment: float
    sequence: int
    snapshot: int
    latency: float


class AudienceSink(Sink):
    """Records every frame that the show puts out, as an audience would see it."""

    def __init__(self) -> None:
        super().__init__("audience:")
        self.shown: deque[ShownFrame] = deque(maxlen=100_000)

    def _write(self, frame: Frame) -> None:
        now = time.perf_counter()
        self.shown.append(ShownFrame(now, frame.sequence, frame.snapshot, now - frame.captured_at))

    def longest_gap(self, since: float) -> float:
        """Return the longest time between two frames from ``since`` until now, in seconds."""
        moments = [frame.moment for frame in list(self.shown) if frame.moment >= since]
        return float(np.diff([*moments, time.perf_counter()]).max()) if moments else time.perf_counter() - since

    def count_transformed(self, since: float) -> int:
        """Return the number of inputs whose transformed frame was shown after ``since``."""
        return len({frame.sequence for frame in list(self.shown) if frame.moment >= since and frame.snapshot > 0})

    def latencies(self) -> list[float]:
        """Return the latency of each input's first transformed frame, in seconds, without repeats of a held frame."""
        first = {frame.sequence: frame.latency for frame in reversed(self.shown) if frame.snapshot > 0}
        return list(first.values())


class BreakableSink(Sink):
    """A sink with a ``fault``: "blocks", "gone", or "" for none."""

    def __init__(self) -> None:
        super().__init__("breakable:")
        self.fault = ""

    def _write(self, frame: Frame) -> None:
        while self.fault == "blocks":
            time.sleep(0.01)
        if self.fault == "gone":
            raise OSError("injected fault: receiver gone")
