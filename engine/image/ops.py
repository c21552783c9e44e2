"""Picture operations on a device: grade, mirror, kaleidoscope, feedback, feather. Pictures: (B, 3, H, W) in 0..1.

``sample`` and ``average_cells`` stand in for operators of torch that MPS has in part only; not run on a Mac yet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.runtime.uploads import UploadMemo, constant, upload

_LUMA = (0.299, 0.587, 0.114)
#: Values of an operation by key, as ``UploadMemo`` takes them.
DeviceValues = dict[Hashable, Callable[[], Tensor]]


@dataclass(frozen=True)
class ColorGrade:
    """Gain, contrast about mid grey, saturation, and hue rotation in degrees. The defaults change nothing."""

    gain: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def __call__(self, pictures: Tensor, uploads: UploadMemo | None = None) -> Tensor:
        """Return graded ``pictures``, clamped to 0..1; with the defaults ``pictures`` itself."""
        if self == ColorGrade():
            return pictures
        matrix = _on_device(self, self._matrix, pictures, uploads)
        graded = torch.einsum("oc,bchw->bohw", matrix, pictures)
        return ((graded - 0.5) * self.contrast + 0.5).clamp(0, 1)

    def values(self) -> DeviceValues:
        """Return what a call reads from ``uploads``."""
        return {} if self == ColorGrade() else {self: self._matrix}

    def _matrix(self) -> Tensor:
        """Return gain, saturation and hue as one 3×3 matrix about the grey axis. At gain 1 grey keeps its luminance."""
        luma = torch.tensor(_LUMA).expand(3, 3)
        rotation = torch.eye(3)
        if self.hue:
            angle = math.radians(self.hue)
            c, s = math.cos(angle), math.sin(angle)
            third, root = (1 - c) / 3, s / math.sqrt(3)
            about_grey = torch.tensor(
                [
                    [c + third, third - root, third + root],
                    [third + root, c + third, third - root],
                    [third - root, third + root, c + third],
                ]
            )
            # A rotation about the grey axis changes luminance: subtract the change equally from all three channels.
            rotation = about_grey + (luma - luma @ about_grey)
        return self.gain * (luma + self.saturation * (torch.eye(3) - luma)) @ rotation


def luminance(pictures: Tensor) -> Tensor:
    """Return the luminance (BT.601) of each picture, repeated in three channels, (B, 3, H, W)."""
    luma = constant(_LUMA, pictures.device, pictures.dtype).view(1, 3, 1, 1)
    return (pictures * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def mirror(pictures: Tensor, side: str) -> Tensor:
    """Mirror the ``left`` or the ``top`` half onto the other one, or the top left quarter onto all four (``both``)."""
    height, width = pictures.shape[-2:]
    if side in ("left", "both"):
        half = pictures[..., : (width + 1) // 2]
        pictures = torch.cat([half, half.flip(-1)[..., width % 2 :]], -1)
    if side in ("top", "both"):
        half = pictures[..., : (height + 1) // 2, :]
        pictures = torch.cat([half, half.flip(-2)[..., height % 2 :, :]], -2)
    return pictures


def kaleidoscope(pictures: Tensor, segments: int) -> Tensor:
    """Fold each picture into ``segments`` mirrored wedges about its centre; below 2 return ``pictures`` itself."""
    if segments < 2:
        return pictures
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(_axis(height, pictures), _axis(width, pictures), indexing="ij")
    aspect = width / height
    radius, angle = torch.hypot(x * aspect, y), torch.atan2(y, x * aspect)
    wedge = math.pi / segments
    folded = (angle.remainder(2 * wedge) - wedge).abs()
    grid = torch.stack([radius * folded.cos() / aspect, radius * folded.sin()], -1)
    return sample(pictures, grid.expand(len(pictures), -1, -1, -1), padding="reflection")


@dataclass(frozen=True)
class Feedback:
    """Feedback of the last output into the input: its share, its transform, and what fills the area beyond its edge.

    ``rotate`` and ``hue`` are degrees, ``x`` and ``y`` shares of the picture, ``edge`` mirror, wrap, hold or black.
    """

    amount: float = 0.0
    zoom: float = 1.0
    rotate: float = 0.0
    x: float = 0.0
    y: float = 0.0
    hue: float = 0.0
    edge: str = "mirror"

    def __call__(self, pictures: Tensor, last: Tensor | None, uploads: UploadMemo | None = None) -> Tensor:
        """Mix ``last`` (1, 3, H, W) into ``pictures``; at amount 0 or without ``last`` return ``pictures`` itself."""
        if self.amount <= 0.0 or last is None or last.shape[-2:] != pictures.shape[-2:]:
            return pictures
        return torch.lerp(pictures, ColorGrade(hue=self.hue)(self.transform(last, uploads), uploads), self.amount)

    def values(self, width: int, height: int) -> DeviceValues:
        """Return what a call on pictures of this size reads from ``uploads``."""
        if self.amount <= 0.0:
            return {}
        return {(self, width / height): lambda: self._theta(width / height)} | ColorGrade(hue=self.hue).values()

    def transform(self, last: Tensor, uploads: UploadMemo | None = None) -> Tensor:
        """Zoom ``last`` in by ``zoom``, rotate it clockwise, then shift it right and down."""
        aspect = last.shape[-1] / last.shape[-2]
        theta = _on_device((self, aspect), lambda: self._theta(aspect), last, uploads)
        grid = F.affine_grid(theta[None], list(last.shape), align_corners=False)
        if self.edge == "wrap":
            grid = (grid + 1).remainder(2) - 1
        padding = {"mirror": "reflection", "hold": "border", "wrap": "border", "black": "zeros"}[self.edge]
        return sample(last, grid, padding=padding)

    def _theta(self, aspect: float) -> Tensor:
        """Return the transform as an affine matrix (2, 3), from the output's to the input's coordinates."""
        angle = math.radians(self.rotate)
        c, s = math.cos(angle) / self.zoom, math.sin(angle) / self.zoom
        return torch.tensor(
            [
                [c, s / aspect, -2 * self.x * c - 2 * self.y * s / aspect],
                [-s * aspect, c, 2 * self.x * s * aspect - 2 * self.y * c],
            ]
        )


def feather(mask: Tensor, share: float) -> Tensor:
    """Soften the edges of a mask (B, 1, H, W) in 0..1 over ``share`` of the height."""
    radius = round(share * mask.shape[-2] / 2)
    if radius < 1:
        return mask
    for _ in range(2):  # two box blurs approximate a Gaussian
        mask = F.avg_pool2d(F.pad(mask, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
    return mask


def sample(pictures: Tensor, grid: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Sample ``pictures`` (B, C, H, W) at ``grid`` (B, h, w, 2): x and y in -1..1 from edge to edge → (B, C, h, w).

    ``mode`` is bilinear or bicubic, ``padding`` zeros, border or reflection. On MPS bicubic becomes bilinear, which is
    softer, and border is drawn by limiting the grid: it has no bicubic sampler, and torch before 2.13 no border there.
    """
    if pictures.device.type == "mps":
        mode = "bilinear"
        if padding == "border":
            grid, padding = _limit_to_centres(grid, *pictures.shape[-2:]), "zeros"
    return F.grid_sample(pictures, grid, mode=mode, padding_mode=padding, align_corners=False)


def _limit_to_centres(grid: Tensor, height: int, width: int) -> Tensor:
    """Limit a grid to the centres of the outermost pixels, where bilinear sampling is that with a border."""
    x, y = 1 - 1 / width, 1 - 1 / height
    return torch.stack([grid[..., 0].clamp(-x, x), grid[..., 1].clamp(-y, y)], -1)


def average_cells(pictures: Tensor, height: int, width: int) -> Tensor:
    """Return the mean of each cell of a grid over the pictures, (B, C, H, W) → (B, C, height, width).

    Cell i of n along a side of N pixels covers those from floor(i·N/n) to ceil((i+1)·N/n), as torch's adaptive average
    pooling and its area resize have it. MPS has these only where every side divides; there two products do the same.
    """
    if pictures.device.type != "mps":
        return F.adaptive_avg_pool2d(pictures, (height, width))
    return average_cells_by_products(pictures, height, width)


def average_cells_by_products(pictures: Tensor, height: int, width: int) -> Tensor:
    """Return the same as ``average_cells``, as a product with the weights of rows and one with those of columns."""
    rows, columns = pictures.shape[-2:]
    like = (pictures.device, pictures.dtype)
    return _cell_weights(rows, height, *like) @ pictures @ _cell_weights(columns, width, *like).T


@functools.lru_cache(maxsize=16)
def _cell_weights(pixels: int, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the share of each pixel in each cell of a side, (cells, pixels)."""
    with torch.inference_mode(False):  # training may use it too
        cell, pixel = torch.arange(cells)[:, None], torch.arange(pixels)
        covered = (pixel >= cell * pixels // cells) & (pixel < -(-(cell + 1) * pixels // cells))
        return (covered / covered.sum(1, keepdim=True)).to(device, dtype)


def _axis(count: int, like: Tensor) -> Tensor:
    """Return the centres of ``count`` pixels in -1..1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count * 2 - 1


def _on_device(key: Hashable, compute: Callable[[], Tensor], like: Tensor, uploads: UploadMemo | None) -> Tensor:
    """Return a value on the device of ``like``, in its dtype: from ``uploads``, or uploaded for this call."""
    value = upload(compute(), like.device) if uploads is None else uploads.get(key, compute)
    return value.to(like.dtype)
