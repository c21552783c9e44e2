"""Dense optical flow and warping on the CPU, for interpolation, temporal accumulation and the flicker measure.

The estimator is dense inverse search (Kroeger et al., arXiv 1603.03590) as OpenCV has it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Flow = NDArray[np.float32]


class FlowPair(NamedTuple):
    """Motion between two pictures, (H, W, 2) float32 in pixels each: from the first to the second, and back."""

    forward: Flow
    backward: Flow

    def round_trip_error(self) -> NDArray[np.float32]:
        """Distance in pixels, (H, W), between each pixel of the first picture and where forward then backward lead."""
        return np.asarray(np.linalg.norm(self.forward + warp(self.backward, self.forward), axis=2), np.float32)


class OpticalFlow:
    """An estimator that reuses its buffers; one for each thread. ``fast`` trades accuracy for speed."""

    def __init__(self, fast: bool = False) -> None:
        preset = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST if fast else cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
        self._estimator: Any = cv2.DISOpticalFlow.create(preset)

    def estimate(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> FlowPair:
        """Return the motion between two grey pictures, (H, W) uint8 of the same size."""
        forward, backward = (
            np.asarray(self._estimator.calc(a, b, None)) for a, b in ((first, second), (second, first))
        )
        return FlowPair(forward, backward)


def warp(picture: NDArray[Any], flow: Flow) -> NDArray[Any]:
    """Sample ``picture`` (H, W, …) at each pixel's position plus ``flow`` (H, W, 2), bilinear, edges replicated."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
