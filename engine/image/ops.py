"""Pictures on the device before and after diffusion: grade, mirror, kaleidoscope, feedback, mask. All (B, 3, H, W) in 0..1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ColorGrade:
    """Gain, contrast about mid grey, saturation, and a turn of the hue in degrees. The defaults change nothing."""

    gain: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def __call__(self, pictures: Tensor) -> Tensor:
        """Graded ``pictures``, clamped to 0..1."""
        if self == ColorGrade():
            return pictures
        matrix = self._matrix().to(pictures.device, pictures.dtype)
        mixed = torch.einsum("oc,bchw->bohw", matrix, pictures)
        return ((mixed - 0.5) * self.contrast + 0.5).clamp(0, 1)

    def _matrix(self) -> Tensor:
        """Saturation and hue as one 3×3 matrix about the grey axis, times the gain; grey stays grey of the same luminance."""
        luma = torch.tensor(_LUMA).expand(3, 3)
        turned = torch.eye(3)
        if self.hue:
            angle = math.radians(self.hue)
            c, s = math.cos(angle), math.sin(angle)
            third, root = (1 - c) / 3, s / math.sqrt(3)
            plain = torch.tensor(
                [
                    [c + third, third - root, third + root],
                    [third + root, c + third, third - root],
                    [third - root, third + root, c + third],
                ]
            )
            # A turn about the grey axis changes luminance: what it adds is taken from all three channels alike.
            turned = plain + (luma - luma @ plain)
        return self.gain * (luma + self.saturation * (torch.eye(3) - luma)) @ turned


def luminance(pictures: Tensor) -> Tensor:
    """The brightness of each picture, three times, (B, 3, H, W)."""
    return (pictures * pictures.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def mirror(pictures: Tensor, side: str) -> Tensor:
    """One half shown on both sides: ``left`` and its mirror image, ``top``, or the top left quarter in all four."""
    height, width = pictures.shape[-2:]
    if side in ("left", "both"):
        half = pictures[..., : (width + 1) // 2]
        pictures = torch.cat([half, half.flip(-1)[..., width % 2 :]], -1)
    if side in ("top", "both"):
        half = pictures[..., : (height + 1) // 2, :]
        pictures = torch.cat([half, half.flip(-2)[..., height % 2 :, :]], -2)
    return pictures


def kaleidoscope(pictures: Tensor, segments: int) -> Tensor:
    """The picture folded into ``segments`` mirrored wedges about its middle; below 2 as it is."""
    if segments < 2:
        return pictures
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(_axis(height, pictures), _axis(width, pictures), indexing="ij")
    aspect = width / height
    radius, angle = torch.hypot(x * aspect, y), torch.atan2(y, x * aspect)
    wedge = math.pi / segments
    folded = (angle.remainder(2 * wedge) - wedge).abs()
    grid = torch.stack([radius * folded.cos() / aspect, radius * folded.sin()], -1)
    return F.grid_sample(
        pictures, grid.expand(len(pictures), -1, -1, -1), padding_mode="reflection", align_corners=False
    )


@dataclass(frozen=True)
class Feedback:
    """How the last output comes back into the input: how much of it, moved how, and what shows beyond its edge."""

    amount: float = 0.0
    zoom: float = 1.0
    rotate: float = 0.0
    x: float = 0.0
    y: float = 0.0
    hue: float = 0.0
    edge: str = "mirror"

    def __call__(self, pictures: Tensor, last: Tensor | None) -> Tensor:
        """``pictures`` with ``last`` (1, 3, H, W) mixed in. At amount 0, or without a last one, as they are."""
        if self.amount <= 0.0 or last is None or last.shape[-2:] != pictures.shape[-2:]:
            return pictures
        return torch.lerp(pictures, ColorGrade(hue=self.hue)(self.moved(last)), self.amount)

    def moved(self, last: Tensor) -> Tensor:
        """``last`` zoomed in by ``zoom``, turned by ``rotate`` degrees clockwise and moved by shares of its size."""
        height, width = last.shape[-2:]
        angle, aspect = math.radians(self.rotate), width / height
        c, s = math.cos(angle) / self.zoom, math.sin(angle) / self.zoom
        theta = last.new_tensor(
            [
                [c, s / aspect, -2 * self.x * c - 2 * self.y * s / aspect],
                [-s * aspect, c, 2 * self.x * s * aspect - 2 * self.y * c],
            ]
        )
        grid = F.affine_grid(theta[None], list(last.shape), align_corners=False)
        if self.edge == "wrap":
            grid = (grid + 1).remainder(2) - 1
        padding = {"mirror": "reflection", "hold": "border", "wrap": "border", "black": "zeros"}[self.edge]
        return F.grid_sample(last, grid, padding_mode=padding, align_corners=False)


def feather(mask: Tensor, share: float) -> Tensor:
    """A mask (B, 1, H, W) in 0..1 with its edges softened over ``share`` of the height."""
    radius = round(share * mask.shape[-2] / 2)
    if radius < 1:
        return mask
    for _ in range(2):  # two box blurs are nearly a Gaussian
        mask = F.avg_pool2d(F.pad(mask, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
    return mask


def _axis(count: int, like: Tensor) -> Tensor:
    """Centres of ``count`` pixels, -1..1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count * 2 - 1
