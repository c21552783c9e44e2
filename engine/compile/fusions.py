"""Fused layers of an autoencoder: algebra that saves CPU time and changes nothing but rounding.

Nearest-neighbour upsampling by 2 followed by a 3×3 convolution is one transposed convolution of stride 2 with a 4×4
kernel: of the nine taps of an output pixel, several read the same input pixel. It takes 4/9 of the arithmetic, and the
upsampled image is never written to memory.

Consecutive convolutions with nothing between them are one convolution. That saves most next to the image, which has far
fewer channels than the layers inside. The edges need a correction: outside the image the inner layers' results are
replaced by their zero padding, which a single kernel does not see. So their contribution there is subtracted. All
kernels are read off the chain's response to single pixels on the coarse side, which has fewer of them; a chain that
downsamples is transposed first.

Cells of 2×2, 4×4 or 8×8 fine pixels correspond to one coarse pixel. Images lie in memory channels last, so a row of a
cell is a view: its pixels become channels without a copy on the way in, and whole rows of cells are written on the way
out.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad, pixel_unshuffle

#: Most channels of a tensor that counts as an image.
MAX_IMAGE_CHANNELS = 4
#: Most layers of stride 2 that are fused with the convolution at the image.
MAX_FUSED_LEVELS = 3


class UpsampleConv2d(nn.Module):
    """``Upsample(2, nearest)`` and ``convolution`` (3×3, padding 1) as one layer: (B, C, h, w) → (B, C', 2h, 2w)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(upsample_kernel(convolution.weight), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


@torch.no_grad()
def upsample_kernel(kernel: Tensor) -> Tensor:
    """Return the transposed kernel of upsampling and convolution, (C', C, 3, 3) → (C, C', 4, 4).

    A transposed convolution reads its kernel backwards, and each tap reaches two pixels of the upsampled image.
    """
    flipped = kernel.transpose(0, 1).flip(2, 3).float()
    result = flipped.new_zeros(*flipped.shape[:2], 4, 4)
    for y in (0, 1):
        for x in (0, 1):
            result[:, :, y : y + 3, x : x + 3] += flipped
    return result.to(kernel.dtype).contiguous(memory_format=torch.channels_last)


class FusedConvolutions(nn.Module):
    """A chain of convolutions as one 3×3 convolution between cells of n×n fine pixels and coarse pixels.

    (B, C, n·h, n·w) → (B, C', h, w) for a chain that downsamples, (B, C, h, w) → (B, C', n·h, n·w) for one that
    upsamples, n = 2, 4 or 8. Row, column and corner kernels subtract what all layers but the last would have added
    outside the image.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsamples = not isinstance(layers[0], UpsampleConv2d)
        self.cell_side = side = 2 ** (len(layers) - 1)
        chain = copy.deepcopy(nn.Sequential(*layers)).float()
        like = next(layers[-1].parameters())
        first_weight = next(layers[0].parameters())
        coarse_channels = len(like) if self.downsamples else first_weight.shape[0]

        def kernel_at(y: _CellPosition, x: _CellPosition) -> Tensor:
            """Return the kernel (C', C, ys, xs) between the coarse pixel at (y, x) and the cells around it."""
            impulses = pad(
                torch.eye(coarse_channels, device=like.device)[..., None, None],
                (x.at, x.of - x.at - 1, y.at, y.of - y.at - 1),
            )
            if self.downsamples:
                cells = self._to_cells(_transpose_chain(chain, impulses))
                return cells[:, :, y.reached, x.reached]
            cells = self._to_cells(chain(impulses) - chain(torch.zeros_like(impulses[:1])))
            return cells[:, :, y.reached, x.reached].flip(2, 3).transpose(0, 1)

        with torch.no_grad():
            if self.downsamples:
                response_to_zeros = chain(torch.zeros(1, first_weight.shape[1], 3 * side, 3 * side, device=like.device))
            else:
                response_to_zeros = self._to_cells(chain(torch.zeros(1, coarse_channels, 3, 3, device=like.device)))
            kernel, bias = kernel_at(_INTERIOR, _INTERIOR), response_to_zeros[0, :, 1, 1]
            rows = [kernel_at(edge, _INTERIOR) - kernel[:, :, 1:2] for edge in _EDGES]
            columns = [kernel_at(_INTERIOR, edge) - kernel[..., 1:2] for edge in _EDGES]
            corner_kernels = [kernel_at(_EDGES[i], _EDGES[j])[..., 0, 0] for i, j in _CORNERS]
        row_biases = [response_to_zeros[0, :, y, 1] - bias for y in (0, 2)]
        column_biases = [response_to_zeros[0, :, 1, x] - bias for x in (0, 2)]
        corners, corner_biases = [], []
        for (i, j), corner in zip(_CORNERS, corner_kernels, strict=True):
            corners.append(corner - kernel[:, :, 1, 1] - rows[i][:, :, 0, 1] - columns[j][:, :, 1, 0])
            corner_biases.append(response_to_zeros[0, :, 2 * i, 2 * j] - bias - row_biases[i] - column_biases[j])

        def kernel_parameter(value: Tensor) -> nn.Parameter:
            return _parameter(_to_row_kernel(value, side) if self.downsamples else value, like)

        self.kernel, self.bias = kernel_parameter(kernel), _parameter(bias, like)
        self.rows, self.row_bias = kernel_parameter(torch.cat(rows)), _parameter(torch.cat(row_biases), like)
        self.columns = kernel_parameter(torch.cat(columns))
        self.column_bias = _parameter(torch.cat(column_biases), like)
        self.corners = kernel_parameter(torch.cat(corners)[..., None, None])
        self.corner_bias = _parameter(torch.cat(corner_biases), like)

    def forward(self, x: Tensor) -> Tensor:
        cell_height = 1
        if self.downsamples:
            x, cell_height = _columns_to_channels(x, self.cell_side), self.cell_side
        stride = (cell_height, 1)
        result = conv2d(x, self.kernel, self.bias, stride, stride)
        edge_rows = _concatenate_edges(x, 2, cell_height)
        top, bottom = conv2d(edge_rows, self.rows, self.row_bias, stride, (0, 1)).chunk(2, 1)
        edge_columns = _concatenate_edges(x, 3)
        left, right = conv2d(edge_columns, self.columns, self.column_bias, stride, (cell_height, 0)).chunk(2, 1)
        result[:, :, :1].add_(top[:, :, :1])
        result[:, :, -1:].add_(bottom[:, :, 1:])
        result[..., :1].add_(left[..., :1])
        result[..., -1:].add_(right[..., 1:])
        corners = conv2d(_concatenate_edges(edge_rows, 3), self.corners, self.corner_bias, stride).chunk(4, 1)
        for corner, (i, j) in zip(corners, _CORNERS, strict=True):
            result[:, :, -i : 1 - i or None, -j : 1 - j or None].add_(corner[:, :, i : i + 1, j : j + 1])
        return result if self.downsamples else _cells_to_pixels(result, self.cell_side)

    def _to_cells(self, x: Tensor) -> Tensor:
        """Return fine pixels as cells; for a chain that upsamples, in the order that ``_cells_to_pixels`` takes."""
        cells = pixel_unshuffle(x, self.cell_side)
        if self.downsamples:
            return cells
        return cells.unflatten(1, (-1, self.cell_side**2)).transpose(1, 2).flatten(1, 2)


def _transpose_chain(chain: nn.Sequential, x: Tensor) -> Tensor:
    """Run convolutions backwards: return the weight of each of their inputs in the outputs ``x``."""
    for layer in reversed(chain):
        assert isinstance(layer, nn.Conv2d)
        x = conv_transpose2d(x, layer.weight, stride=layer.stride, padding=1, output_padding=layer.stride[0] - 1)
    return x


class _CellPosition(NamedTuple):
    """Position of a cell on one axis: index ``at`` of ``of`` cells; ``reached`` selects those its kernel covers."""

    at: int
    of: int
    reached: slice


#: An interior cell, with neighbours on both sides.
_INTERIOR = _CellPosition(1, 3, slice(0, 3))
#: The first and last cell on an axis. For these, only the correction to the interior kernel is stored.
_EDGES = (_CellPosition(0, 2, slice(0, 1)), _CellPosition(1, 2, slice(1, 2)))
#: (0 top or 1 bottom, 0 left or 1 right).
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def _concatenate_edges(x: Tensor, dimension: int, count: int = 1) -> Tensor:
    """Return the first and the last ``count`` entries of a dimension as one tensor."""
    return torch.cat([x.narrow(dimension, 0, count), x.narrow(dimension, x.shape[dimension] - count, count)], dimension)


def _columns_to_channels(x: Tensor, side: int) -> Tensor:
    """Merge ``side`` pixels of a row into one, (B, C, h, n·w) → (B, n·C, h, w), from the left."""
    rows = x.permute(0, 2, 3, 1)
    return rows.reshape(*rows.shape[:2], rows.shape[2] // side, side * rows.shape[3]).permute(0, 3, 1, 2)


def _to_row_kernel(kernel: Tensor, side: int) -> Tensor:
    """Convert a kernel on cells, (C', C·n², y, x), to one on merged columns, (C', n·C, n·y, x).

    Of the cell below, a chain reaches only the first row: the kernel's other rows are cut off.
    """
    out, cells, y, x = kernel.shape
    taps = kernel.view(out, cells // side**2, side, side, y, x).permute(0, 3, 1, 4, 2, 5)
    return taps.reshape(out, cells // side, side * y, x)[:, :, : 2 * side + 1]


def _cells_to_pixels(cells: Tensor, side: int) -> Tensor:
    """Unfold each cell's channels into pixels, (B, n²·C, h, w) → (B, C, n·h, n·w): row by row, from the left."""
    count, channels, height, width = cells.shape
    rows = cells.permute(0, 2, 3, 1).reshape(count, height, width, side, channels // side).transpose(2, 3)
    return rows.reshape(count, side * height, side * width, channels // side**2).permute(0, 3, 1, 2)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    order = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    return nn.Parameter(value.to(like.dtype).contiguous(memory_format=order), requires_grad=False)


def fuse_adjacent_convolutions(module: nn.Module) -> None:
    """Fuse chains of convolutions whose first or last layer meets the image itself. Run ``fuse_upsampling`` before."""
    for parent in module.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        indices = [i for i, layer in enumerate(parent) if not isinstance(layer, nn.Identity)]
        layers = [parent[i] for i in indices]
        for k, layer in enumerate(layers):
            if not _is_conv3x3(layer):
                continue
            after, before = layers[k + 1 : k + 1 + MAX_FUSED_LEVELS], layers[max(0, k - MAX_FUSED_LEVELS) : k]
            downsampling = list(itertools.takewhile(lambda one: _is_conv3x3(one, stride=2), after))
            upsampling = list(itertools.takewhile(lambda one: isinstance(one, UpsampleConv2d), reversed(before)))
            if layer.in_channels <= MAX_IMAGE_CHANNELS and downsampling:
                chain = range(k, k + 1 + len(downsampling))
            elif layer.out_channels <= MAX_IMAGE_CHANNELS and upsampling:
                chain = range(k - len(upsampling), k + 1)
            else:
                continue
            fused = FusedConvolutions([layers[i] for i in chain])
            for i in chain:
                parent[indices[i]] = fused if i == chain[0] else nn.Identity()


def fuse_upsampling(module: nn.Module) -> None:
    """Replace every upsampling by 2 inside ``module``, and the convolution after it, by one layer."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for i in range(len(parent) - 1):
                before, after = parent[i], parent[i + 1]
                if _is_upsample2x(before) and _is_conv3x3(after):
                    parent[i], parent[i + 1] = UpsampleConv2d(after), nn.Identity()
        elif _is_diffusers_upsampler(parent) and _is_conv3x3(parent.conv):
            parent.conv, parent.interpolate = UpsampleConv2d(parent.conv), False


def _is_diffusers_upsampler(module: nn.Module) -> TypeGuard[Any]:
    """Return whether the module is diffusers' upsampling by 2, with no normalisation before it."""
    return type(module).__name__ == "Upsample2D" and bool(module.interpolate) and module.norm is None


def _is_upsample2x(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest" and module.scale_factor in (2, 2.0)


def _is_conv3x3(module: nn.Module | None, stride: int = 1) -> TypeGuard[nn.Conv2d]:
    """Return whether the module is a dense 3×3 convolution with that stride and padding 1."""
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return False
    expected = ((3, 3), (stride, stride), (1, 1), (1, 1))
    return (module.kernel_size, module.stride, module.padding, module.dilation) == expected
