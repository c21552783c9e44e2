"""Training pictures, all drawn by code: captioned patterns, and textures with the statistics of real footage."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.training.pocket.captions import MOOD_WORDS, PatternSpec
from engine.training.pocket.palette import COLOURS, paint, palette
from engine.training.pocket.patterns import PATTERNS, grid

Picture = NDArray[np.float32]


def random_spec(rng: np.random.Generator) -> PatternSpec:
    """Return a random pattern in one or two colours, sometimes with a mood."""
    names = list(COLOURS)
    count = 1 if rng.random() < 0.6 else 2
    colours = tuple(str(c) for c in rng.choice(names, count, replace=False))
    mood = str(rng.choice(list(MOOD_WORDS))) if rng.random() < 0.35 else ""
    return PatternSpec(str(rng.choice(list(PATTERNS))), colours, mood)


def draw(spec: PatternSpec, rng: np.random.Generator, size: int) -> Picture:
    """Draw ``spec`` as a picture (size, size, 3), sRGB in 0..1."""
    field = PATTERNS[spec.pattern](rng, grid(size), float(rng.random()))
    if spec.mood == "soft":
        field = cv2.GaussianBlur(field, (0, 0), size / 48)
    return apply_mood(paint(field, palette(list(spec.colours), rng)), spec.mood, rng)


def apply_mood(picture: Picture, mood: str, rng: np.random.Generator) -> Picture:
    """Make ``picture`` (size, size, 3) in 0..1 darker, brighter or glowing, as its mood says."""
    if mood == "dark":
        picture = picture * np.float32(rng.uniform(0.45, 0.65))
    elif mood == "bright":
        picture = np.clip(picture * 1.25 + 0.03, 0, 1)
    elif mood == "neon":
        picture = np.clip(picture**1.3 + 0.6 * cv2.GaussianBlur(picture**2, (0, 0), picture.shape[0] / 24), 0, 1)
    return picture.astype(np.float32)


def draw_power_law_noise(rng: np.random.Generator, size: int) -> Picture:
    """Draw noise whose amplitude falls as 1/f^a, a about 1, as in photographs. (size, size, 3), 0..1."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / size) ** rng.uniform(0.9, 1.8)
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        plane = np.fft.irfft2(amplitude * phase, (size, size))
        planes.append(plane / (plane.std() + 1e-9))
    # Luminance carries most of the contrast, as in photographs; the planes mix into correlated colour.
    mix = np.ones((3, 3)) * 0.8 + rng.normal(0, 0.35, (3, 3))
    colour = np.stack(planes, -1) @ mix * rng.uniform(0.08, 0.25) + rng.uniform(0.2, 0.8, 3)
    return np.clip(colour, 0, 1).astype(np.float32)


def draw_dead_leaves(rng: np.random.Generator, size: int) -> Picture:
    """Draw occluding, textured shapes of power-law sizes, with edges as in photographs. (size, size, 3), 0..1."""
    picture = draw_power_law_noise(rng, size)
    texture = draw_power_law_noise(rng, size) - 0.5
    for _ in range(int(rng.integers(30, 160))):
        radius = size * min(0.5, 0.012 / rng.random() ** 0.7)
        cy, cx = rng.uniform(0, size, 2)
        mask = np.zeros((size, size), np.uint8)
        if rng.random() < 0.5:
            axes = (max(1, int(radius)), max(1, int(radius * rng.uniform(0.2, 1))))
            cv2.ellipse(mask, (int(cx), int(cy)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            points = np.stack([cx + radius * np.cos(angles), cy + radius * np.sin(angles)], -1)
            cv2.fillPoly(mask, [points.astype(np.int32)], 255, cv2.LINE_AA)
        y0, y1 = max(0, int(cy - radius) - 2), min(size, int(cy + radius) + 3)
        x0, x1 = max(0, int(cx - radius) - 2), min(size, int(cx + radius) + 3)
        if y1 <= y0 or x1 <= x0:
            continue
        alpha = mask[y0:y1, x0:x1, None].astype(np.float32) / 255.0
        fill = rng.uniform(0, 1, 3) * rng.uniform(0.2, 1) + texture[y0:y1, x0:x1] * rng.uniform(0, 0.8)
        picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - alpha) + fill * alpha
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 1.5)))
    return np.clip(picture, 0, 1).astype(np.float32)


def draw_training_picture(rng: np.random.Generator, size: int) -> Picture:
    """Draw one picture for the autoencoder: a pattern, dead leaves or power-law noise, (size, size, 3), 0..1."""
    kind = rng.random()
    if kind < 0.4:
        return draw(random_spec(rng), rng, size)
    if kind < 0.85:
        return draw_dead_leaves(rng, size)
    return draw_power_law_noise(rng, size)
