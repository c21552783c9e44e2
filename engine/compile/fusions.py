"""Algebra that makes an autoencoder cheaper on a CPU and changes nothing but rounding.

A picture doubled by repeating its pixels and then convolved by 3×3 is one transposed convolution of stride 2 with a 4×4 kernel: of the nine
taps of an output pixel several fall on the same input pixel. That is 4/9 of the arithmetic, and the doubled picture is never written.

Convolutions with nothing between are one, and cheaper where a picture is on one side, which has far fewer channels than what lies between.
Only along the edges they are not: there the first ones' results outside the picture count as nothing, which the one kernel cannot know, so
what they would have added is taken off again. All of these kernels are read off what the convolutions make of single ones on the coarser
side, which has fewer; where they halve, they are turned round for that.

Their cells of 2×2, 4×4 or 8×8 pixels are taken as pictures lie in memory, channels last: the pixels of a cell's row are one of so many
times the channels, so that nothing is moved on the way in, and whole rows of cells on the way out.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad, pixel_unshuffle

#: Channels of a picture at most.
FEW = 4
#: Halvings or doublings at most that become one with the convolution at the picture.
LEVELS = 3


class UpsampleConv2d(nn.Module):
    """What ``Upsample(2, nearest)`` followed by ``convolution`` (3×3, padding 1) does: (B, C, h, w) → (B, C', 2h, 2w)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(spread(convolution.weight), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


@torch.no_grad()
def spread(kernel: Tensor) -> Tensor:
    """(C', C, 3, 3) → (C, C', 4, 4): a transposed kernel reads backwards, and each tap reaches two pixels of the doubled picture."""
    turned = kernel.transpose(0, 1).flip(2, 3).float()
    spread = turned.new_zeros(*turned.shape[:2], 4, 4)
    for y in (0, 1):
        for x in (0, 1):
            spread[:, :, y : y + 3, x : x + 3] += turned
    return spread.to(kernel.dtype).contiguous(memory_format=torch.channels_last)


class FusedConvolutions(nn.Module):
    """Convolutions in a row as one of 3×3 between cells: n×n pixels of the finer side against one of the coarser.

    (B, C, n·h, n·w) → (B, C', h, w) where they halve, (B, C, h, w) → (B, C', n·h, n·w) where they double, n = 2, 4 or 8.
    Row, column and corner kernels take off what each convolution but the last would have added outside the picture.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.halves = not isinstance(layers[0], UpsampleConv2d)
        self.side = side = 2 ** (len(layers) - 1)
        run = copy.deepcopy(nn.Sequential(*layers)).float()
        like = next(layers[-1].parameters())

        def mutual(y: _Place, x: _Place) -> Tensor:
            """What a coarser cell at (y, x) and the finer cells around it are to each other, as a kernel (C', C, ys, xs)."""
            lit = pad(
                torch.eye(coarser, device=like.device)[..., None, None], (x.at, x.of - x.at - 1, y.at, y.of - y.at - 1)
            )
            finer = self._finer(_turned(run, lit) if self.halves else run(lit) - run(torch.zeros_like(lit[:1])))
            finer = finer[:, :, y.reached, x.reached]
            return finer if self.halves else finer.flip(2, 3).transpose(0, 1)

        with torch.no_grad():
            first = next(layers[0].parameters()).shape
            coarser = len(like) if self.halves else first[0]
            zeros = torch.zeros(
                1, first[1] if self.halves else coarser, *[3 * side if self.halves else 3] * 2, device=like.device
            )
            nothing = run(zeros) if self.halves else self._finer(run(zeros))
            kernel, bias = mutual(_AMIDST, _AMIDST), nothing[0, :, 1, 1]
            rows = [mutual(end, _AMIDST) - kernel[:, :, 1:2] for end in _ENDS]
            columns = [mutual(_AMIDST, end) - kernel[..., 1:2] for end in _ENDS]
            meeting = [mutual(_ENDS[i], _ENDS[j])[..., 0, 0] for i, j in _CORNERS]
        row_biases, column_biases = (
            [nothing[0, :, y, 1] - bias for y in (0, 2)],
            [nothing[0, :, 1, x] - bias for x in (0, 2)],
        )
        corners, corner_biases = [], []
        for (i, j), met in zip(_CORNERS, meeting, strict=True):
            corners.append(met - kernel[:, :, 1, 1] - rows[i][:, :, 0, 1] - columns[j][:, :, 1, 0])
            corner_biases.append(nothing[0, :, 2 * i, 2 * j] - bias - row_biases[i] - column_biases[j])
        laid = functools.partial(_tall, side=side) if self.halves else lambda kernel: kernel
        self.kernel, self.bias = _parameter(laid(kernel), like), _parameter(bias, like)
        self.rows, self.row_bias = _parameter(laid(torch.cat(rows)), like), _parameter(torch.cat(row_biases), like)
        self.columns, self.column_bias = (
            _parameter(laid(torch.cat(columns)), like),
            _parameter(torch.cat(column_biases), like),
        )
        self.corners = _parameter(laid(torch.cat(corners)[..., None, None]), like)
        self.corner_bias = _parameter(torch.cat(corner_biases), like)

    def forward(self, x: Tensor) -> Tensor:
        cell = 1
        if self.halves:
            x, cell = _joined(x, self.side), self.side
        stride = (cell, 1)
        whole = conv2d(x, self.kernel, self.bias, stride, stride)
        ends = _ends(x, 2, cell)
        top, bottom = conv2d(ends, self.rows, self.row_bias, stride, (0, 1)).chunk(2, 1)
        left, right = conv2d(_ends(x, 3), self.columns, self.column_bias, stride, (cell, 0)).chunk(2, 1)
        whole[:, :, :1].add_(top[:, :, :1])
        whole[:, :, -1:].add_(bottom[:, :, 1:])
        whole[..., :1].add_(left[..., :1])
        whole[..., -1:].add_(right[..., 1:])
        corners = conv2d(_ends(ends, 3), self.corners, self.corner_bias, stride).chunk(4, 1)
        for corner, (i, j) in zip(corners, _CORNERS, strict=True):
            whole[:, :, -i : 1 - i or None, -j : 1 - j or None].add_(corner[:, :, i : i + 1, j : j + 1])
        return whole if self.halves else _shuffled(whole, self.side)

    def _finer(self, x: Tensor) -> Tensor:
        """The finer side as cells; where it is what they make, as ``_shuffled`` takes it."""
        cells = pixel_unshuffle(x, self.side)
        return cells if self.halves else cells.unflatten(1, (-1, self.side**2)).transpose(1, 2).flatten(1, 2)


def _turned(run: nn.Sequential, x: Tensor) -> Tensor:
    """Convolutions the other way round: how much each of their inputs counts for ``x`` of their outputs."""
    for layer in reversed(run):
        assert isinstance(layer, nn.Conv2d)
        x = conv_transpose2d(x, layer.weight, stride=layer.stride, padding=1, output_padding=layer.stride[0] - 1)
    return x


class _Place(NamedTuple):
    """Where along a side a cell lies: the how-manieth ``at`` ``of`` so many, and which of them are ``reached`` from it."""

    at: int
    of: int
    reached: slice


#: A cell with others on both sides; the first and the last of a side, whose kernels beyond what is amidst are told for themselves alone.
_AMIDST, _ENDS = _Place(1, 3, slice(0, 3)), (_Place(0, 2, slice(0, 1)), _Place(1, 2, slice(1, 2)))
#: Top or bottom, left or right.
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def _ends(x: Tensor, dimension: int, count: int = 1) -> Tensor:
    """The first and the last ``count`` of a dimension."""
    return torch.cat([x.narrow(dimension, 0, count), x.narrow(dimension, x.shape[dimension] - count, count)], dimension)


def _joined(x: Tensor, side: int) -> Tensor:
    """``side`` pixels of a row as one, (B, C, h, n·w) → (B, n·C, h, w): the leftmost one's channels first."""
    rows = x.permute(0, 2, 3, 1)
    return rows.reshape(*rows.shape[:2], rows.shape[2] // side, side * rows.shape[3]).permute(0, 3, 1, 2)


def _tall(kernel: Tensor, side: int) -> Tensor:
    """A kernel (C', C·n², y, x) on cells as one on ``_joined``, (C', n·C, n·y, x). Of a cell below, only the first row is reached."""
    out, cells, y, x = kernel.shape
    taps = kernel.view(out, cells // side**2, side, side, y, x).permute(0, 3, 1, 4, 2, 5)
    return taps.reshape(out, cells // side, side * y, x)[:, :, : 2 * side + 1]


def _shuffled(cells: Tensor, side: int) -> Tensor:
    """The pixels of each cell beside each other, (B, n²·C, h, w) → (B, C, n·h, n·w): the upper row first, from the left."""
    count, channels, height, width = cells.shape
    rows = cells.permute(0, 2, 3, 1).reshape(count, height, width, side, channels // side).transpose(2, 3)
    return rows.reshape(count, side * height, side * width, channels // side**2).permute(0, 3, 1, 2)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    order = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    return nn.Parameter(value.to(like.dtype).contiguous(memory_format=order), requires_grad=False)


def fuse_adjacent_convolutions(module: nn.Module) -> None:
    """Replaces convolutions in a row by one, where the first or the last meets the picture itself; ``fuse_upsampling`` goes before."""
    for parent in module.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        places = [i for i, layer in enumerate(parent) if not isinstance(layer, nn.Identity)]
        layers = [parent[i] for i in places]
        for k, layer in enumerate(layers):
            if not _plain(layer):
                continue
            halving = list(itertools.takewhile(lambda one: _plain(one, stride=2), layers[k + 1 : k + 1 + LEVELS]))
            doubling = list(
                itertools.takewhile(
                    lambda one: isinstance(one, UpsampleConv2d), reversed(layers[max(0, k - LEVELS) : k])
                )
            )
            if layer.in_channels <= FEW and halving:
                row = range(k, k + 1 + len(halving))
            elif layer.out_channels <= FEW and doubling:
                row = range(k - len(doubling), k + 1)
            else:
                continue
            composed = FusedConvolutions([layers[i] for i in row])
            for i in row:
                parent[places[i]] = composed if i == row[0] else nn.Identity()


def fuse_upsampling(module: nn.Module) -> None:
    """Replaces every doubling and the convolution after it inside ``module``."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for i in range(len(parent) - 1):
                before, after = parent[i], parent[i + 1]
                if _doubles(before) and _plain(after):
                    parent[i], parent[i + 1] = UpsampleConv2d(after), nn.Identity()
        elif (
            type(parent).__name__ == "Upsample2D" and parent.interpolate and parent.norm is None and _plain(parent.conv)
        ):
            parent.conv, parent.interpolate = UpsampleConv2d(parent.conv), False


def _doubles(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest" and module.scale_factor in (2, 2.0)


def _plain(module: nn.Module | None, stride: int = 1) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return False
    return (module.kernel_size, module.stride, module.padding, module.dilation) == (
        (3, 3),
        (stride, stride),
        (1, 1),
        (1, 1),
    )
