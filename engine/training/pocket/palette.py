"""Colour words of the pocket model: their sRGB values, palettes of them, and the dominant one of a picture."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

#: Colour word → sRGB in 0..1. Hues are spaced so that a viewer can tell any two apart.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.93, 0.08, 0.10),
    "orange": (0.98, 0.48, 0.05),
    "yellow": (0.98, 0.90, 0.10),
    "lime": (0.62, 0.95, 0.10),
    "green": (0.10, 0.72, 0.18),
    "turquoise": (0.10, 0.85, 0.65),
    "cyan": (0.10, 0.88, 0.98),
    "azure": (0.12, 0.55, 0.98),
    "blue": (0.10, 0.18, 0.95),
    "violet": (0.48, 0.18, 0.95),
    "magenta": (0.95, 0.12, 0.90),
    "pink": (1.00, 0.50, 0.70),
    "brown": (0.45, 0.25, 0.10),
    "white": (0.95, 0.95, 0.95),
}


def palette(names: list[str], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return colour stops from darkest to brightest for one or two colour words, shape (stops, 3), sRGB 0..1."""
    jitter = rng.normal(0.0, 0.025, (len(names), 3))
    base = [np.clip(np.array(COLOURS[name]) + j, 0.0, 1.0) for name, j in zip(names, jitter, strict=True)]
    if len(base) == 1:
        colour = base[0]
        tint = rng.uniform(0.0, 0.3) if names[0] not in ("brown", "pink") else 0.1
        stops = [colour * rng.uniform(0.02, 0.2), colour * 0.75, colour, colour + (1 - colour) * tint]
    elif rng.random() < 0.5:
        stops = [base[0] * 0.1, base[0], base[1]]
    else:
        stops = [base[0], base[0] * 0.2 + base[1] * 0.1, base[1]]
    return np.stack(stops).astype(np.float32)


def paint(field: NDArray[np.float32], stops: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a field (H, W) in 0..1 through colour stops (S, 3) to a picture (H, W, 3) in 0..1."""
    x = np.linspace(0.0, 1.0, len(stops))
    flat = np.clip(field, 0.0, 1.0).ravel()
    return np.stack([np.interp(flat, x, stops[:, c]) for c in range(3)], -1).reshape(*field.shape, 3).astype(np.float32)


def dominant_colour(picture: NDArray[np.uint8]) -> str:
    """Return the colour word for most of the light in ``picture`` (H, W, 3), sRGB.

    Every pixel votes for the nearest word in chromaticity, weighted by its brightness, so that a black
    background does not count. Brown is dark orange: the brightness of the lit parts tells them apart.
    """
    rgb = picture.reshape(-1, 3).astype(np.float32) / 255.0
    value = rgb.max(1)
    chroma = value - rgb.min(1)
    saturation = chroma / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, chroma)
    lit = value > 0.15
    names = [n for n in COLOURS if n not in ("white", "brown")]
    references = np.array([colorsys.rgb_to_hsv(*COLOURS[n]) for n in names])
    # Distance in a hue circle scaled by saturation; pink is the one pale hue among vivid ones.
    angle = 2 * np.pi * hue[:, None] - 2 * np.pi * references[None, :, 0]
    s, r = saturation[:, None], references[None, :, 1]
    distance = s**2 + r**2 - 2 * s * r * np.cos(angle)
    # A dark or half-saturated shade keeps its hue's name: ignore saturation except for pale pixels.
    vivid = np.maximum(s, 0.9)
    distance = np.where(s > 0.6, vivid**2 + r**2 - 2 * vivid * r * np.cos(angle), distance)
    nearest = distance.argmin(1)
    votes = {n: float((value * (nearest == i) * lit * (saturation >= 0.25)).sum()) for i, n in enumerate(names)}
    votes["white"] = float((value * lit * (saturation < 0.25)).sum())
    winner = max(votes, key=lambda n: votes[n])
    if winner in ("orange", "red", "yellow") and lit.any() and np.quantile(value[lit], 0.9) < 0.68:
        return "brown"
    return winner


def _hue(rgb: NDArray[np.float32], value: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    r, g, b = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    c = np.maximum(chroma, 1e-6)
    hue = np.where(value == r, ((g - b) / c) % 6, np.where(value == g, (b - r) / c + 2, (r - g) / c + 4))
    return (hue / 6.0).astype(np.float32)
