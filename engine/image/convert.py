"""Pixels as the mailboxes carry them, RGBA uint8 (H, W, 4), and pictures as the model takes and gives them, float32 in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_picture(pixels: NDArray[np.uint8], width: int, height: int, device: torch.device) -> Tensor:
    """The colours of ``pixels`` → (1, 3, height, width) on ``device``, channels last."""
    if device.type == "cpu":  # the same, only faster
        colours = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB))
    else:
        colours = _moved(pixels, device)[..., :3]
    return _sized(colours.float().div_(255.0), width, height)


def to_alpha(pixels: NDArray[np.uint8], width: int, height: int, device: torch.device) -> Tensor:
    """The alpha of ``pixels`` → (1, 1, height, width) on ``device``."""
    return _sized(_moved(pixels, device)[..., 3:].float().div_(255.0), width, height)


def to_pixels(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 → RGBA uint8 (B, H, W, 4), opaque."""
    rows = pictures.permute(0, 2, 3, 1)
    if rows.device.type == "cpu":  # the same, only faster
        scaled = [cv2.convertScaleAbs(picture, alpha=255.0) for picture in rows.float().contiguous().numpy()]
        made = np.empty((*rows.shape[:3], 4), np.uint8)
        for picture, into in zip(scaled, made, strict=True):
            cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA, dst=into)
        return torch.from_numpy(made)
    opaque = torch.full((*rows.shape[:3], 4), 255, dtype=torch.uint8, device=rows.device)
    opaque[..., :3] = (rows * 255.0).round_()
    return opaque


def cat_batch(rows: Sequence[Tensor]) -> Tensor:
    """Batches as one; a single one as it is, not copied."""
    return torch.cat(list(rows)) if len(rows) > 1 else rows[0]


def _moved(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)  # beside this frame's kernels; not run on a GPU yet
    return tensor.to(device)


def _sized(rows: Tensor, width: int, height: int) -> Tensor:
    """(H, W, C) → (1, C, height, width)."""
    picture = rows.permute(2, 0, 1)[None]
    if picture.shape[-2:] == (height, width):
        return picture
    return torch.nn.functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
