"""Pixels on the bridge's side: fit, resize, dim, channel order, JPEG. All RGBA uint8 (height, width, 4) unless said otherwise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.shared.frame import Frame, Pixels

#: Longest side of a preset's thumbnail, in pixels.
THUMBNAIL_SIDE = 192


def fit(pixels: Pixels, width: int, height: int, mode: str) -> Pixels:
    """RGBA ``pixels`` as (height, width, 4): ``crop`` fills and cuts, ``fit`` shows all between black bars, ``stretch`` distorts."""
    source_height, source_width = pixels.shape[:2]
    if (source_width, source_height) == (width, height):
        return pixels
    if mode == "crop":
        scale = max(width / source_width, height / source_height)
        cut_w, cut_h = min(source_width, round(width / scale)), min(source_height, round(height / scale))
        x, y = (source_width - cut_w) // 2, (source_height - cut_h) // 2
        return resize(pixels[y : y + cut_h, x : x + cut_w], width, height)
    if mode == "fit":
        scale = min(width / source_width, height / source_height)
        inner_w, inner_h = max(1, round(source_width * scale)), max(1, round(source_height * scale))
        canvas = np.zeros((height, width, 4), np.uint8)
        canvas[..., 3] = 255
        x, y = (width - inner_w) // 2, (height - inner_h) // 2
        canvas[y : y + inner_h, x : x + inner_w] = resize(pixels, inner_w, inner_h)
        return canvas
    return resize(pixels, width, height)


def resize(pixels: Pixels, width: int, height: int, sharpen: float = 0.0) -> Pixels:
    """RGBA ``pixels`` at another size: area average downward, linear upward; cubic and sharpened upward where ``sharpen`` is above 0."""
    if pixels.strides[0] < 0 or pixels.strides[1:] != (4, 1):  # upside down, or not as OpenCV takes them
        pixels = np.ascontiguousarray(pixels)
    smaller = width < pixels.shape[1] or height < pixels.shape[0]
    while (
        pixels.shape[1] >= 2 * width
        and pixels.shape[0] >= 2 * height
        and pixels.shape[0] % 2 == pixels.shape[1] % 2 == 0
    ):
        # Averages of 2×2 pixels are many times faster than others, and what is left to do is a quarter.
        halves = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, halves, interpolation=cv2.INTER_AREA), np.uint8)
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC if sharpen > 0.0 else cv2.INTER_LINEAR
    out = np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), np.uint8)
    if smaller or sharpen <= 0.0:
        return out
    # Unsharp mask as wide as the growth: what interpolation took away.
    blurred = cv2.GaussianBlur(out, (0, 0), 0.6 * width / pixels.shape[1])
    return np.asarray(cv2.addWeighted(out, 1.0 + sharpen, blurred, -sharpen, 0.0), np.uint8)


def swap_red_blue(pixels: NDArray[np.uint8]) -> Pixels:
    """RGBA from BGRA, or BGRA from RGBA, contiguous."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), np.uint8)


def rgb_to_rgba(rgb: NDArray[np.uint8]) -> Pixels:
    """RGBA from RGB (height, width, 3)."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), np.uint8)


def jpeg(frame: Frame, longest: int = 640) -> bytes:
    """``frame`` as a JPEG, at most ``longest`` pixels wide or high."""
    pixels = cv2.cvtColor(frame.pixels, cv2.COLOR_RGBA2BGR)
    scale = longest / max(pixels.shape[:2])
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def dim(pixels: Pixels, level: float) -> Pixels:
    """RGBA ``pixels`` at ``level`` 0 to 1 of their brightness, alpha as it was."""
    table = np.round(np.arange(256) * level).astype(np.uint8)
    out = table[pixels]
    out[..., 3] = pixels[..., 3]
    return out
