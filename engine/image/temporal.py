"""Temporal accumulation: blend the previous output, warped along the input's motion, into the present one.

The method is renderers' (Yang et al., "A Survey of Temporal Antialiasing Techniques", 2020). The motion vectors come
from the input pictures by optical flow. Moving objects keep their paint and still areas stop flickering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.image.ops import average_cells, luminance, sample
from engine.runtime.uploads import constant, upload
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


class Motion(NamedTuple):
    """The motion of an input picture, estimated on the host when it enters, so that no picture is read back.

    ``small`` is the picture as uint8 (h, w), ``field`` the motion since the picture ``previous``, as ``motion_field``
    returns it; both are None for the first picture.
    """

    small: NDArray[np.uint8]
    previous: NDArray[np.uint8] | None = None
    field: Tensor | None = None


class MotionEstimator:
    """The motion between pictures that enter one after the other."""

    def __init__(self) -> None:
        self._flow = OpticalFlow()
        self._last: NDArray[np.uint8] | None = None

    def reset(self) -> None:
        """Forget the last picture."""
        self._last = None

    def estimate(self, pictures: Sequence[Tensor], width: int, height: int) -> list[Motion]:
        """Return the motion of each of ``pictures``, (1, 3, h, w) in 0..1 on the CPU, for a working size."""
        motions, last = [], self._last
        for picture in pictures:
            small = _shrink(luminance(picture)[:, :1], small_size(width, height))
            field = None if last is None or last.shape != small.shape else motion_field(self._flow, small, last)
            motions.append(Motion(small, None if field is None else last, field))
            last = small
        return motions

    def enter(self, motion: Motion) -> None:
        """Take the picture of ``motion`` as the last one."""
        self._last = motion.small


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

    def accumulate(
        self, diffused: Tensor, inputs: Tensor, share: float, motions: Sequence[Motion | None] | None = None
    ) -> Tensor:
        """Return ``diffused`` (B, 3, H, W) in 0..1, each with up to ``share`` of the output before it.

        ``inputs`` (B, 3, H, W) are the pictures that they were diffused from. The previous output is warped along the
        motion of the inputs; its weight falls where that motion is uncertain. At share 0 the history is dropped.
        ``motions`` are those of the inputs, None for one that was not estimated: it gets no history. Without the list
        they are estimated here, which reads the inputs back from a GPU.
        """
        if share <= 0.0:
            self.reset()
            return diffused
        greys = luminance(inputs)[:, :1].split(1)
        if motions is None:
            size = small_size(inputs.shape[-1], inputs.shape[-2])
            motions = [Motion(_shrink(grey, size)) for grey in greys]
        return torch.cat([self._blend(*one, share) for one in zip(diffused.split(1), greys, motions, strict=True)])

    def _blend(self, picture: Tensor, grey: Tensor, motion: Motion | None, share: float) -> Tensor:
        if motion is None:
            self.reset()
            return picture
        history = self._history
        if history is None or history.output.shape != picture.shape:
            self._history = _History(picture, motion.small, grey)
            return picture
        previous, previous_grey, round_trip, inside = self._reproject(history, motion, picture)
        difference = F.avg_pool2d((previous_grey - grey).abs(), 5, 1, 2)
        trust = _trust(difference, round_trip, LUMINANCE_TOLERANCE, ROUND_TRIP_TOLERANCE) * inside
        # After a cut some areas always look alike by chance. That they also pass the round trip is rare.
        close = _trust(difference, round_trip, CLOSE_LUMINANCE_TOLERANCE, CLOSE_ROUND_TRIP_TOLERANCE)
        cut = (close.mean() < MIN_CLOSE_MATCH).to(trust.dtype)
        weight = share * trust * (1 - cut)
        output = torch.lerp(picture, previous, weight)
        self._history = _History(output, motion.small, grey)
        detail = output - F.avg_pool2d(F.pad(output, (4, 4, 4, 4), mode="replicate"), 9, 1)
        return (output + SHARPEN * weight * detail).clamp(0, 1)

    def _reproject(self, history: _History, motion: Motion, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the previous output and luminance warped to the present, the round-trip error, and what is in view.

        Shapes (1, 3, H, W), (1, 1, H, W), (1, 1, H, W) in pixels of the small picture, (1, 1, H, W) of booleans.
        """
        field = motion.field
        if field is None or motion.previous is not history.small:  # frames between them were dropped
            field = upload(motion_field(self._flow, motion.small, history.small), like.device)
        field = F.interpolate(field, like.shape[-2:], mode="bilinear", align_corners=False)
        theta = constant((((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),), like.device, like.dtype)
        identity = F.affine_grid(theta, list(like.shape), align_corners=False)
        grid = identity + field[:, :2].permute(0, 2, 3, 1)
        warped = sample(torch.cat([history.output, history.grey], 1), grid, "bicubic", "border").clamp(0, 1)
        return warped[:, :3], warped[:, 3:], field[:, 2:], grid.abs().amax(-1)[:, None] <= 1


def motion_field(flow: OpticalFlow, small: NDArray[np.uint8], previous: NDArray[np.uint8]) -> Tensor:
    """Return the motion from ``previous`` to ``small`` and its round-trip error, (1, 3, h, w) on the CPU.

    The motion is in the units of grid_sample, which counts half pictures, the error in pixels of the small picture.
    """
    estimated = flow.estimate(small, previous)
    scaled = estimated.forward * np.array([2 / small.shape[1], 2 / small.shape[0]], np.float32)
    return torch.from_numpy(np.dstack([scaled, estimated.round_trip_error()])).permute(2, 0, 1)[None]


def small_size(width: int, height: int) -> tuple[int, int]:
    """Return (height, width) of the pictures for the flow: at most FLOW_SIDE, at least 32 a side."""
    scale = min(1.0, FLOW_SIDE / max(height, width))
    return max(32, round(height * scale)), max(32, round(width * scale))


def _shrink(grey: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (1, 1, H, W) in 0..1 as uint8 of ``size`` for the flow."""
    return (average_cells(grey, *size)[0, 0] * 255).round().to(torch.uint8).cpu().numpy()


def _trust(difference: Tensor, round_trip: Tensor, luminance_tolerance: float, round_trip_tolerance: float) -> Tensor:
    """Return a weight in 0..1 that falls as a Gaussian of both errors."""
    return torch.exp(-((difference / luminance_tolerance) ** 2) - (round_trip / round_trip_tolerance) ** 2)
