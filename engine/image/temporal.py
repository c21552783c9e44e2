"""Temporal accumulation: blend the previous output, warped along the input's motion, into the present one.

The method is renderers' (Yang et al., "A Survey of Temporal Antialiasing Techniques", 2020). The motion vectors come
from the input pictures by optical flow. Moving objects keep their paint and still areas stop flickering.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.image.ops import average_cells, luminance, sample
from engine.shared.optical_flow import OpticalFlow

#: Longer side of the pictures between which motion is estimated, in pixels.
FLOW_SIDE = 256
#: Mean difference of luminance along the motion, of 1, at which the motion is no longer trusted.
LUMINANCE_TOLERANCE = 0.15
#: Round-trip error of the flow at which the motion is no longer trusted, in pixels of the small picture.
ROUND_TRIP_TOLERANCE = 8.0
#: The same two tolerances for a close match, which distinguishes motion from a cut.
CLOSE_LUMINANCE_TOLERANCE, CLOSE_ROUND_TRIP_TOLERANCE = 0.06, 2.0
#: Share of the picture that must match closely; below it the input was cut, and nothing is accumulated.
MIN_CLOSE_MATCH = 0.4
#: Sharpening of the returned picture, at the scale of a latent cell, against the blur of averaging.
#: The history stays unsharpened: it would ring.
SHARPEN = 0.5


class _History(NamedTuple):
    """The previous frame: its output (1, 3, H, W), its small grey input (h, w) uint8, its luminance (1, 1, H, W)."""

    output: Tensor
    small: NDArray[np.uint8]
    grey: Tensor


class TemporalAccumulator:
    """Temporal accumulation with the history of one stream. Not thread-safe."""

    def __init__(self) -> None:
        self._flow = OpticalFlow()
        self._history: _History | None = None

    def reset(self) -> None:
        """Drop the history."""
        self._history = None

    def accumulate(self, diffused: Tensor, inputs: Tensor, share: float) -> Tensor:
        """Return ``diffused`` (B, 3, H, W) in 0..1, each with up to ``share`` of the output before it.

        ``inputs`` (B, 3, H, W) are the pictures that they were diffused from. The previous output is warped along the
        motion of the inputs; its weight falls where that motion is uncertain. At share 0 the history is dropped.
        """
        if share <= 0.0:
            self.reset()
            return diffused
        return torch.cat([self._blend(diffused[i : i + 1], inputs[i : i + 1], share) for i in range(len(diffused))])

    def _blend(self, picture: Tensor, source: Tensor, share: float) -> Tensor:
        grey = luminance(source)[:, :1]
        small = _shrink(grey)
        history = self._history
        if history is None or history.output.shape != picture.shape:
            self._history = _History(picture, small, grey)
            return picture
        previous, previous_grey, round_trip, inside = self._reproject(history, small, picture)
        difference = F.avg_pool2d((previous_grey - grey).abs(), 5, 1, 2)
        trust = _trust(difference, round_trip, LUMINANCE_TOLERANCE, ROUND_TRIP_TOLERANCE) * inside
        # After a cut some areas always look alike by chance. That they also pass the round trip is rare.
        close = _trust(difference, round_trip, CLOSE_LUMINANCE_TOLERANCE, CLOSE_ROUND_TRIP_TOLERANCE)
        cut = (close.mean() < MIN_CLOSE_MATCH).to(trust.dtype)
        weight = share * trust * (1 - cut)
        output = torch.lerp(picture, previous, weight)
        self._history = _History(output, small, grey)
        detail = output - F.avg_pool2d(F.pad(output, (4, 4, 4, 4), mode="replicate"), 9, 1)
        return (output + SHARPEN * weight * detail).clamp(0, 1)

    def _reproject(
        self, history: _History, small: NDArray[np.uint8], like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the previous output and luminance warped to the present, the round-trip error, and what is in view.

        Shapes (1, 3, H, W), (1, 1, H, W), (1, 1, H, W) in pixels of the small picture, (1, 1, H, W) of booleans.
        """
        flow = self._flow.estimate(small, history.small)
        # Pixels of the small picture → the units of grid_sample, which counts half pictures.
        scaled = flow.forward * np.array([2 / small.shape[1], 2 / small.shape[0]], np.float32)
        field = torch.from_numpy(np.dstack([scaled, flow.round_trip_error()])).permute(2, 0, 1)[None].to(like.device)
        field = F.interpolate(field, like.shape[-2:], mode="bilinear", align_corners=False)
        identity = F.affine_grid(like.new_tensor([[[1.0, 0, 0], [0, 1, 0]]]), list(like.shape), align_corners=False)
        grid = identity + field[:, :2].permute(0, 2, 3, 1)
        warped = sample(torch.cat([history.output, history.grey], 1), grid, "bicubic", "border").clamp(0, 1)
        return warped[:, :3], warped[:, 3:], field[:, 2:], grid.abs().amax(-1)[:, None] <= 1


def _shrink(grey: Tensor) -> NDArray[np.uint8]:
    """Return (1, 1, H, W) in 0..1 as uint8 (h, w) for the flow: at most FLOW_SIDE, at least 32 a side."""
    height, width = grey.shape[-2:]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(32, round(height * scale)), max(32, round(width * scale)))
    return (average_cells(grey, *size)[0, 0] * 255).round().to(torch.uint8).cpu().numpy()


def _trust(difference: Tensor, round_trip: Tensor, luminance_tolerance: float, round_trip_tolerance: float) -> Tensor:
    """Return a weight in 0..1 that falls as a Gaussian of both errors."""
    return torch.exp(-((difference / luminance_tolerance) ** 2) - (round_trip / round_trip_tolerance) ** 2)
