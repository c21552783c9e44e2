"""Algebra that makes an autoencoder cheaper on a CPU and changes nothing but rounding.

A picture doubled by repeating its pixels and then convolved by 3×3 is one transposed convolution of stride 2 with a 4×4 kernel: of the nine
taps of an output pixel several fall on the same input pixel. That is 4/9 of the arithmetic, and the doubled picture is never written.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn


class DoublingConvolution(nn.Module):
    """What ``Upsample(2, nearest)`` followed by ``convolution`` (3×3, padding 1) does: (B, C, h, w) → (B, C', 2h, 2w)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(_spread(convolution.weight), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


@torch.no_grad()
def _spread(kernel: Tensor) -> Tensor:
    """(C', C, 3, 3) → (C, C', 4, 4): a transposed kernel reads backwards, and each tap reaches two pixels of the doubled picture."""
    turned = kernel.transpose(0, 1).flip(2, 3).float()
    spread = turned.new_zeros(*turned.shape[:2], 4, 4)
    for y in (0, 1):
        for x in (0, 1):
            spread[:, :, y : y + 3, x : x + 3] += turned
    return spread.to(kernel.dtype).contiguous(memory_format=torch.channels_last)


def fuse_doubling(module: nn.Module) -> None:
    """Replaces every doubling and the convolution after it inside ``module``."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for i in range(len(parent) - 1):
                before, after = parent[i], parent[i + 1]
                if _doubles(before) and _plain(after):
                    parent[i], parent[i + 1] = DoublingConvolution(after), nn.Identity()
        elif type(parent).__name__ == "Upsample2D" and parent.interpolate and parent.norm is None and _plain(parent.conv):
            parent.conv, parent.interpolate = DoublingConvolution(parent.conv), False


def _doubles(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest" and module.scale_factor in (2, 2.0)


def _plain(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return False
    return (module.kernel_size, module.stride, module.padding, module.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
