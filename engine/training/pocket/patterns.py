"""The sixteen patterns of the pocket model, each a moving field drawn by code.

Every pattern function takes a random generator, which decides its shape, a coordinate grid
(y, x in -1..1, shape (H, W) each) and a phase in turns, which moves it. It returns a field (H, W), float32, in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Grid = tuple[Field, Field]
TAU = 2 * np.pi


def grid(size: int) -> Grid:
    """Return coordinates y, x of a square picture, -1..1, top row first."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y.astype(np.float32), x.astype(np.float32)


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 4, gain: float = 0.5) -> Field:
    """Return fractal value noise (size, size) in 0..1: random lattices, each twice as fine and ``gain`` as strong."""
    total = np.zeros((size, size), np.float32)
    weight = 0.0
    for octave in range(octaves):
        n = min(cells * 2**octave + 3, size)
        lattice = rng.random((n, n), dtype=np.float32)
        total += gain**octave * cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC)
        weight += gain**octave
    total /= weight
    low, high = total.min(), total.max()
    return ((total - low) / max(high - low, 1e-6)).astype(np.float32)


def warp(field: Field, dy: Field, dx: Field, amount: float) -> Field:
    """Displace each point of a field by (dy, dx) in -0.5..0.5 times ``amount``, a share of the picture."""
    size = field.shape[0]
    index = np.arange(size, dtype=np.float32)
    map_y = index[:, None] + dy * amount * size
    map_x = index[None, :] + dx * amount * size
    return cv2.remap(
        field, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def _wave(v: Field) -> Field:
    return (0.5 + 0.5 * np.sin(v)).astype(np.float32)


def _soft_step(v: Field, edge: float, width: float) -> Field:
    return np.clip((v - edge) / width + 0.5, 0, 1).astype(np.float32)


def _polar(g: Grid, rng: np.random.Generator, wander: float) -> Grid:
    cy, cx = rng.uniform(-wander, wander, 2)
    y, x = g[0] - np.float32(cy), g[1] - np.float32(cx)
    return np.sqrt(x * x + y * y) + np.float32(1e-4), np.arctan2(y, x)


def plasma(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    v = np.zeros_like(x)
    for _ in range(5):
        fy, fx = rng.normal(0, 2.6, 2)
        v += np.sin(fx * x + fy * y + TAU * (t * rng.integers(1, 3) + rng.random()))
    r, _ = _polar(g, rng, 0.8)
    return _wave(1.1 * v + np.sin(r * rng.uniform(3, 6) + TAU * t))


def tunnel(rng: np.random.Generator, g: Grid, t: float) -> Field:
    r, a = _polar(g, rng, 0.2)
    arms = int(rng.integers(3, 8)) * 2
    depth = rng.uniform(0.5, 1.2) / r + 2 * t
    twist = a / TAU * arms + rng.uniform(-1, 1) * depth * 0.5
    tiles = np.sin(TAU * depth) * np.sin(np.pi * twist) if rng.random() < 0.6 else np.sin(TAU * depth)
    return _soft_step(tiles, 0.0, rng.uniform(0.3, 1.2)) * np.clip(r * 1.6, 0, 1)


def kaleidoscope(rng: np.random.Generator, g: Grid, t: float) -> Field:
    r, a = _polar(g, rng, 0.05)
    wedge = TAU / int(rng.integers(3, 7)) / 2
    a = np.abs((a + TAU * t / 8) % (2 * wedge) - wedge)
    y, x = r * np.sin(a), r * np.cos(a)
    v = np.zeros_like(x)
    for _ in range(4):
        fy, fx = rng.normal(0, 6.5, 2)
        v += np.sin(fx * x + fy * y + TAU * (t + rng.random()))
    return _soft_step(np.sin(2.2 * v), 0.0, rng.uniform(0.2, 0.7))


def stripes(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    angle = rng.uniform(0, np.pi)
    v = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(8, 26) + TAU * t)
    return _soft_step(v, rng.uniform(-0.4, 0.4), rng.uniform(0.15, 0.6))


def cells(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    count = int(rng.integers(14, 48))
    points = rng.uniform(-1.15, 1.15, (count, 2)) + 0.08 * np.sin(TAU * (t + rng.random((count, 2))))
    first = np.full_like(x, 9.0)
    second = np.full_like(x, 9.0)
    for py, px in points.astype(np.float32):
        d = (y - py) ** 2 + (x - px) ** 2
        second = np.minimum(second, np.maximum(first, d))
        first = np.minimum(first, d)
    first, second = np.sqrt(first), np.sqrt(second)
    if rng.random() < 0.5:
        return np.clip((second - first) * rng.uniform(3, 5), 0, 1)
    return np.clip(first * np.sqrt(count) * 0.75, 0, 1)


def rings(rng: np.random.Generator, g: Grid, t: float) -> Field:
    r, _ = _polar(g, rng, 0.5)
    return _soft_step(np.sin(r * rng.uniform(14, 34) - TAU * t), rng.uniform(-0.4, 0.4), rng.uniform(0.3, 1.2))


def smoke(rng: np.random.Generator, g: Grid, t: float) -> Field:
    size = g[0].shape[0]
    v = warp(
        noise(rng, size, 2, 6, 0.55), noise(rng, size, 2) - 0.5, noise(rng, size, 2) - 0.5 + 0.2 * np.float32(t), 0.55
    )
    return np.clip((v - 0.3) * 1.7, 0, 1) ** 1.6


def lattice(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    if rng.random() < 0.5:
        horizon = rng.uniform(-0.5, 0.1)
        depth = 1 / np.maximum(y - horizon, 0.02)
        u, v, fade = x * depth * rng.uniform(0.8, 1.6), depth * 1.6 + t, np.clip((y - horizon) * 2.5, 0, 1)
        width = 0.06 + 0.02 * depth
    else:
        angle, n = rng.uniform(0, np.pi / 2), rng.uniform(2.5, 6)
        u = (x * np.cos(angle) + y * np.sin(angle)) * n + t
        v = (y * np.cos(angle) - x * np.sin(angle)) * n
        fade, width = np.ones_like(x), np.full_like(x, rng.uniform(0.08, 0.16))
    near = np.minimum(np.abs((u + 0.5) % 1 - 0.5), np.abs((v + 0.5) % 1 - 0.5))
    return np.clip(1.6 - near / width, 0, 1).astype(np.float32) * fade


def stars(rng: np.random.Generator, g: Grid, t: float) -> Field:
    size = g[0].shape[0]
    out = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(30, 90))):
        angle, speed, start = rng.uniform(0, TAU), rng.uniform(0.2, 1.2), rng.random()
        r = ((start + t * speed) % 1.0) * 1.3
        centre = (int((0.5 + 0.5 * r * np.cos(angle)) * size), int((0.5 + 0.5 * r * np.sin(angle)) * size))
        radius = max(1, round(size * rng.uniform(0.003, 0.013) * (0.6 + r)))
        cv2.circle(out, centre, radius, float(rng.uniform(0.6, 1.0)), -1, cv2.LINE_AA)
    glow = cv2.GaussianBlur(out, (0, 0), size / 64)
    return np.clip(out + 1.5 * glow, 0, 1)


def waves(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    bend = np.zeros_like(x)
    for _ in range(3):
        bend += rng.uniform(0.05, 0.22) * np.sin(x * rng.uniform(2, 6) + TAU * (t + rng.random()))
    return _wave((y + bend) * rng.uniform(9, 20) + TAU * rng.random()) ** rng.uniform(0.8, 2.0)


def fractal(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    angle = rng.uniform(0, TAU) + 0.15 * np.sin(TAU * t)
    c = 0.7885 * np.exp(1j * angle)
    turn = np.exp(1j * rng.uniform(0, TAU)) * rng.uniform(1.0, 1.5)
    z = ((x + 1j * y) * turn).astype(np.complex64)
    escape = np.zeros_like(x)
    alive = np.ones(x.shape, bool)
    for _ in range(28):
        z = np.where(alive, z * z + np.complex64(c), z)
        alive &= (z.real**2 + z.imag**2) < 16
        escape += alive
    smooth = escape + 1 - np.log2(np.maximum(np.log(np.abs(z) + 1e-6), 1e-6)) * (~alive)
    return np.clip(np.sqrt(np.clip(smooth, 0, None) / 28), 0, 1).astype(np.float32)


def ink(rng: np.random.Generator, g: Grid, t: float) -> Field:
    size = g[0].shape[0]
    base = noise(rng, size, 2, 3)
    swirled = warp(base, noise(rng, size, 3, 3) - 0.5, noise(rng, size, 3, 3) - 0.5 + 0.1 * np.float32(t), 0.9)
    return _soft_step(np.sin(swirled * rng.uniform(16, 26) + TAU * t), 0.0, 0.35)


def fire(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, _ = g
    size = y.shape[0]
    tall = cv2.resize(noise(rng, size, 5, 4)[: size // 2], (size, size), interpolation=cv2.INTER_CUBIC)
    tall = np.roll(tall, -int(t * size), 0)
    flame = warp(tall, noise(rng, size, 3) - 0.5, noise(rng, size, 3) - 0.5, 0.25)
    reach = rng.uniform(0.6, 1.0)
    lit = np.clip(flame * 1.3 + (y - 1) * 0.5 * reach + 0.05 + 0.35 * np.clip(y, 0, 1), 0, 1) ** 1.6
    return lit.astype(np.float32)


def aurora(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    out = np.zeros_like(x)
    for _ in range(int(rng.integers(2, 4))):
        edge = rng.uniform(-0.1, 0.7) + 0.25 * np.sin(x * rng.uniform(1.5, 4) + TAU * (t + rng.random()))
        rays = 0.55 + 0.45 * np.sin(x * rng.uniform(18, 40) + 3 * np.sin(x * 4 + TAU * t) + TAU * rng.random())
        above = edge - y
        out = np.maximum(out, rays * np.where(above > 0, np.exp(-above * rng.uniform(1.2, 2.2)), np.exp(above * 18)))
    return np.clip(out * 1.1, 0, 1).astype(np.float32)


def spiral(rng: np.random.Generator, g: Grid, t: float) -> Field:
    r, a = _polar(g, rng, 0.25)
    arms = int(rng.integers(1, 6)) * int(rng.choice([-1, 1]))
    v = np.sin(a * arms + np.log(r) * rng.uniform(5, 9) + TAU * t)
    return _soft_step(v, 0.0, rng.uniform(0.4, 1.4))


def dots(rng: np.random.Generator, g: Grid, t: float) -> Field:
    y, x = g
    n, angle = rng.uniform(4, 9), rng.uniform(0, np.pi / 2)
    u = (x * np.cos(angle) + y * np.sin(angle)) * n + t
    v = (y * np.cos(angle) - x * np.sin(angle)) * n
    distance = np.sqrt(((u + 0.5) % 1 - 0.5) ** 2 + ((v + 0.5) % 1 - 0.5) ** 2)
    radius = 0.3 + 0.13 * np.sin(x * 3 + TAU * t) * np.sin(y * 3 + TAU * rng.random())
    return np.clip((radius - distance) * 9 + 0.5, 0, 1).astype(np.float32)


#: Pattern name → the function that draws it.
PATTERNS: dict[str, Callable[[np.random.Generator, Grid, float], Field]] = {
    "plasma": plasma,
    "tunnel": tunnel,
    "kaleidoscope": kaleidoscope,
    "stripes": stripes,
    "cells": cells,
    "rings": rings,
    "smoke": smoke,
    "grid": lattice,
    "stars": stars,
    "waves": waves,
    "fractal": fractal,
    "ink": ink,
    "fire": fire,
    "aurora": aurora,
    "spiral": spiral,
    "dots": dots,
}
