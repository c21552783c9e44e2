"""Image operations of the bridge: fit, resize, dim, channel order, JPEG.

Images are RGBA uint8 of shape (height, width, 4) unless a function says otherwise.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.shared.frame import Frame, Pixels

#: Longer side of a preset's thumbnail.
THUMBNAIL_PIXELS = 192


def fit(pixels: Pixels, width: int, height: int, mode: str) -> Pixels:
    """Return the image at another size and aspect ratio.

    ``mode`` "crop" cuts what exceeds the aspect ratio, "fit" adds black bars, "stretch" distorts.
    """
    source_height, source_width = pixels.shape[:2]
    if (source_width, source_height) == (width, height):
        return pixels
    if mode == "crop":
        scale = max(width / source_width, height / source_height)
        crop_width = min(source_width, round(width / scale))
        crop_height = min(source_height, round(height / scale))
        x, y = (source_width - crop_width) // 2, (source_height - crop_height) // 2
        return resize(pixels[y : y + crop_height, x : x + crop_width], width, height)
    if mode == "fit":
        scale = min(width / source_width, height / source_height)
        inner_width = max(1, round(source_width * scale))
        inner_height = max(1, round(source_height * scale))
        canvas = np.zeros((height, width, 4), np.uint8)
        canvas[..., 3] = 255
        x, y = (width - inner_width) // 2, (height - inner_height) // 2
        canvas[y : y + inner_height, x : x + inner_width] = resize(pixels, inner_width, inner_height)
        return canvas
    return resize(pixels, width, height)


def resize(pixels: Pixels, width: int, height: int, sharpen: float = 0.0) -> Pixels:
    """Return the image at another size, reduced by area averages and enlarged linearly.

    With ``sharpen`` above 0, enlargement is cubic and followed by an unsharp mask of that strength.
    """
    if pixels.strides[0] < 0 or pixels.strides[1:] != (4, 1):  # a layout that OpenCV does not accept
        pixels = np.ascontiguousarray(pixels)
    reduces = width < pixels.shape[1] or height < pixels.shape[0]
    while (
        pixels.shape[1] >= 2 * width
        and pixels.shape[0] >= 2 * height
        and pixels.shape[0] % 2 == pixels.shape[1] % 2 == 0
    ):
        # Averages of 2×2 pixels are many times faster than other areas, and leave a quarter of the pixels.
        half_size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, half_size, interpolation=cv2.INTER_AREA), np.uint8)
    interpolation = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC if sharpen > 0.0 else cv2.INTER_LINEAR
    out = np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), np.uint8)
    if reduces or sharpen <= 0.0:
        return out
    # An unsharp mask as wide as the enlargement restores what interpolation blurred.
    blurred = cv2.GaussianBlur(out, (0, 0), 0.6 * width / pixels.shape[1])
    return np.asarray(cv2.addWeighted(out, 1.0 + sharpen, blurred, -sharpen, 0.0), np.uint8)


def swap_red_blue(pixels: NDArray[np.uint8]) -> Pixels:
    """Return RGBA from BGRA, or BGRA from RGBA, contiguous."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), np.uint8)


def rgb_to_rgba(rgb: NDArray[np.uint8]) -> Pixels:
    """Return RGBA from RGB of shape (height, width, 3)."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), np.uint8)


def encode_jpeg(frame: Frame, max_side: int = 640) -> bytes:
    """Return ``frame`` as a JPEG, at most ``max_side`` pixels wide and high."""
    bgr = cv2.cvtColor(frame.pixels, cv2.COLOR_RGBA2BGR)
    scale = max_side / max(bgr.shape[:2])
    if scale < 1:
        bgr = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def dim(pixels: Pixels, level: float) -> Pixels:
    """Return the image at ``level`` (0 to 1) of its brightness, with the same alpha."""
    table = np.round(np.arange(256) * level).astype(np.uint8)
    out = table[pixels]
    out[..., 3] = pixels[..., 3]
    return out
