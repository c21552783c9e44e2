"""Control images drawn from a picture: edges, luminance, tile. All (B, 3, H, W) in 0..1, on the picture's device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.image.ops import average_cells, luminance
from engine.runtime.uploads import constant

#: Rounds of hysteresis in ``canny``; a fixed number needs no host synchronisation.
HYSTERESIS_ROUNDS = 8


def _gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return Sobel gradients of the smoothed brightness, (B, 1, H, W) each, about 0..1 for a hard edge."""
    grey = luminance(pictures)[:, :1]
    taps = constant((1.0, 4.0, 6.0, 4.0, 1.0), grey.device, grey.dtype) / 16
    grey = F.conv2d(F.pad(grey, (2, 2, 2, 2), mode="replicate"), (taps[:, None] * taps).view(1, 1, 5, 5))
    sobel = constant(((-1.0, 0, 1), (-2, 0, 2), (-1, 0, 1)), grey.device, grey.dtype) / 4
    both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    return both[:, :1], both[:, 1:]


def soft_edge(pictures: Tensor) -> Tensor:
    """Return edges by their strength, white on black: the gradient's size, in place of a trained edge detector."""
    dx, dy = _gradients(pictures)
    return (2.0 * torch.hypot(dx, dy)).clamp(0, 1).expand(-1, 3, -1, -1)


def canny(pictures: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Return thin edges, white on black: Canny's three stages (1986), with a fixed number of hysteresis rounds."""
    dx, dy = _gradients(pictures)
    size = torch.hypot(dx, dy)
    # Non-maximum suppression along the nearest of four directions.
    angle = torch.atan2(dy, dx) * (4 / torch.pi)
    sector = angle.round().remainder(4)
    padded = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def neighbour(y: int, x: int) -> Tensor:
        return padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    thin = torch.zeros_like(size, dtype=torch.bool)
    for number, (y, x) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        thin |= (sector == number) & (size >= neighbour(y, x)) & (size > neighbour(-y, -x))
    weak, strong = thin & (size > low), thin & (size > high)
    for _ in range(HYSTERESIS_ROUNDS):
        strong = weak & (F.max_pool2d(strong.to(size.dtype), 3, 1, 1) > 0)
    return strong.to(size.dtype).expand(-1, 3, -1, -1)


def tile(pictures: Tensor) -> Tensor:
    """Return the picture without its fine detail, as tile ControlNets were trained to refine."""
    height, width = pictures.shape[-2:]
    small = average_cells(pictures, max(1, height // 8), max(1, width // 8))
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


#: Name of a control image → the function that draws it from the input.
CONTROL_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "canny": canny,
    "softedge": soft_edge,
    "luminance": luminance,
    "tile": tile,
}
