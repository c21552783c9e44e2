"""Conversion between pixels (RGBA uint8, as mailboxes carry them) and pictures (float32 in 0..1, on a device)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.runtime.uploads import upload

#: Pixels (H, W, 4) of the host, or uploaded already.
Pixels = NDArray[np.uint8] | Tensor


def to_picture(pixels: Pixels, width: int, height: int, device: torch.device) -> Tensor:
    """Return the colours of ``pixels`` as (1, 3, height, width) on ``device``, channels last."""
    if isinstance(pixels, np.ndarray) and device.type == "cpu":  # the same values as below, but faster
        colours = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB))
    else:
        colours = _on_device(pixels, device)[..., :3]
    return _resize(colours.float().div_(255.0), width, height)


def to_alpha(pixels: Pixels, width: int, height: int, device: torch.device) -> Tensor:
    """Return the alpha of ``pixels`` as (1, 1, height, width) on ``device``."""
    return _resize(_on_device(pixels, device)[..., 3:].float().div_(255.0), width, height)


def to_preview(pixels: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Return the colours of ``pixels`` as a small picture (1, 3, height, width) on the CPU."""
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return to_picture(small, width, height, torch.device("cpu"))


def to_pixels(pictures: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) in 0..1 as opaque RGBA uint8 (B, H, W, 4), rounded to the nearest."""
    rows = pictures.permute(0, 2, 3, 1)
    if rows.device.type == "cpu":  # the same values as below, but faster
        rounded = [cv2.convertScaleAbs(picture, alpha=255.0) for picture in rows.float().contiguous().numpy()]
        pixels = np.empty((*rows.shape[:3], 4), np.uint8)
        for picture, target in zip(rounded, pixels, strict=True):
            cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA, dst=target)
        return torch.from_numpy(pixels)
    opaque = torch.full((*rows.shape[:3], 4), 255, dtype=torch.uint8, device=rows.device)
    opaque[..., :3] = (rows * 255.0).round_()
    return opaque


def cat_batch(batches: Sequence[Tensor]) -> Tensor:
    """Concatenate batches along the first dimension; return a single one as it is, without a copy."""
    return torch.cat(list(batches)) if len(batches) > 1 else batches[0]


def _on_device(pixels: Pixels, device: torch.device) -> Tensor:
    return pixels if isinstance(pixels, Tensor) else upload(torch.from_numpy(pixels), device)


def _resize(rows: Tensor, width: int, height: int) -> Tensor:
    """Resize (H, W, C) to (1, C, height, width)."""
    picture = rows.permute(2, 0, 1)[None]
    if picture.shape[-2:] == (height, width):
        return picture
    return torch.nn.functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
