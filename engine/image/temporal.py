"""The last output carried along the input's motion, so that what moves keeps its paint and what stands still does not flicker.

Temporal accumulation as renderers use it (Yang et al., "A Survey of Temporal Antialiasing Techniques", 2020), with the motion
estimated from the input by dense inverse search (Kroeger et al., arXiv 1603.03590).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.image.ops import luminance

#: Longer side at which motion is estimated, in pixels.
SIDE = 256
#: Mean difference of brightness along the motion, of 1, at which the motion is no longer believed.
DOUBT = 0.15
#: How far from home going there and back may end, in pixels of the small picture.
ASTRAY = 8.0
#: Share of the picture that must be found again closely; below it the input was cut, and nothing is carried over.
CUT = 0.4
#: Sharpness given back to what leaves, over a latent's cell, for what averaging takes away. What is kept stays as it is: it would ring.
CRISP = 0.5


class TemporalAccumulator:
    """The last output and the input it was made of."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._kept: tuple[Tensor, np.ndarray, Tensor] | None = None

    def forget(self) -> None:
        """The next picture has none before it."""
        self._kept = None

    def carried(self, diffused: Tensor, inputs: Tensor, share: float) -> Tensor:
        """``diffused`` (B, 3, H, W) in 0..1, each with ``share`` of the one before it, moved as ``inputs`` moved, where that is sure."""
        if share <= 0.0:
            self.forget()
            return diffused
        return torch.cat([self._one(diffused[i : i + 1], inputs[i : i + 1], share) for i in range(len(diffused))])

    def _one(self, picture: Tensor, source: Tensor, share: float) -> Tensor:
        height, width = picture.shape[-2:]
        scale = min(1.0, SIDE / max(height, width))
        grey = luminance(source)[:, :1]
        small = F.interpolate(grey, (max(32, round(height * scale)), max(32, round(width * scale))), mode="area")
        eight = (small[0, 0] * 255).round().to(torch.uint8).cpu().numpy()
        if self._kept is not None and self._kept[0].shape == picture.shape:
            last, before, old = self._kept
            back, astray = self._estimated(eight, before)
            # Pixels of the small picture → shares of a half picture, which is what grid_sample counts in.
            shares = back * np.array([2 / eight.shape[1], 2 / eight.shape[0]], np.float32)
            both = torch.from_numpy(np.dstack([shares, astray])).permute(2, 0, 1)[None].to(picture.device)
            both = F.interpolate(both, (height, width), mode="bilinear", align_corners=False)
            still = F.affine_grid(
                picture.new_tensor([[[1.0, 0, 0], [0, 1, 0]]]), list(picture.shape), align_corners=False
            )
            grid = still + both[:, :2].permute(0, 2, 3, 1)
            then = F.grid_sample(
                torch.cat([last, old], 1), grid, mode="bicubic", padding_mode="border", align_corners=False
            ).clamp(0, 1)
            doubt = F.avg_pool2d((then[:, 3:] - grey).abs(), 5, 1, 2)
            sure = torch.exp(-((doubt / DOUBT) ** 2) - (both[:, 2:] / ASTRAY) ** 2) * (
                grid.abs().amax(-1)[:, None] <= 1
            )
            # After a cut there is always something that looks alike; that it also lies where it came from is rare.
            cut = (torch.exp(-((doubt / 0.06) ** 2) - (both[:, 2:] / 2) ** 2).mean() < CUT).to(sure.dtype)
            weight = share * sure * (1 - cut)
            picture = torch.lerp(picture, then[:, :3], weight)
            self._kept = (picture, eight, grey)
            fine = picture - F.avg_pool2d(F.pad(picture, (4, 4, 4, 4), mode="replicate"), 9, 1)
            return (picture + CRISP * weight * fine).clamp(0, 1)
        self._kept = (picture, eight, grey)
        return picture

    def _estimated(self, present: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel was in the picture before, (H, W, 2) in pixels, and how far from home the way there and back ends, (H, W)."""
        back, there = (np.asarray(self._flow.calc(a, b, None)) for a, b in ((present, before), (before, present)))
        y, x = np.mgrid[: present.shape[0], : present.shape[1]].astype(np.float32)
        returned = cv2.remap(
            there, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return back, np.asarray(np.linalg.norm(back + returned, axis=2), np.float32)
