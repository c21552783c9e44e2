"""``pattern:NAME``: moving test patterns. ``pattern:plasma?size=640x360&fps=30`` sets size and rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from urllib.parse import parse_qsl

import cv2
import numpy as np
from numpy.typing import NDArray

from bridge.images import rgb_to_rgba
from bridge.textures.base import FramePacer, Source, TextureError, Transport
from engine.shared.frame import Pixels
from engine.shared.parameter import parse_size

Plane = NDArray[np.float32]


def plasma(x: Plane, y: Plane, t: float) -> Plane:
    """Return three slow waves in three colours."""
    radius = distance(x - math.sin(t / 2), y)
    v = np.sin(3 * x + 1.7 * t) + np.sin(4 * y - 1.3 * t) + np.sin(3 * (x + y) + t) + np.sin(5 * radius - 2 * t)
    return np.stack([0.5 + 0.5 * np.sin(v + phase) for phase in (0.0, 2.1, 4.2)], -1)


def bars(x: Plane, y: Plane, t: float) -> Plane:
    """Return eight colour bars that move to the left."""
    index = np.floor((x / 2 + 0.5 + t / 8) * 8).astype(int) % 8
    colours = np.array([[(7 - i) >> 1 & 1, (7 - i) >> 2 & 1, (7 - i) & 1] for i in range(8)], np.float32) * 0.75
    return colours[index]


def ball(x: Plane, y: Plane, t: float) -> Plane:
    """Return a bright ball that circles on a dark ground."""
    radius = distance(x - 0.6 * math.cos(1.5 * t), y - 0.5 * math.sin(1.5 * t))
    light = np.clip((0.28 - radius) * 12, 0, 1)[..., None]
    return np.array([0.05, 0.06, 0.12], np.float32) * (1 - light) + np.array([1.0, 0.75, 0.3], np.float32) * light


def checker(x: Plane, y: Plane, t: float) -> Plane:
    """Return a rotating checkerboard."""
    cos, sin = math.cos(t / 3), math.sin(t / 3)
    u, v = x * cos - y * sin, x * sin + y * cos
    tiles = ((np.floor(u * 4) + np.floor(v * 4)) % 2)[..., None]
    return tiles * np.array([0.9, 0.9, 0.95], np.float32) + (1 - tiles) * np.array([0.1, 0.15, 0.3], np.float32)


def sweep(x: Plane, y: Plane, t: float) -> Plane:
    """Return a radar sweep: a hard edge that moves each frame, over rings."""
    angle = (np.arctan2(y, x) / math.tau + t / 4) % 1.0
    ring = 0.3 + 0.3 * np.sin(10 * distance(x, y))
    return np.stack([angle * 0.9, ring, 1 - angle], -1)


def distance(x: Plane, y: Plane) -> Plane:
    """Return the distance from the centre."""
    return np.sqrt(x * x + y * y)


def still(x: Plane, y: Plane, t: float) -> Plane:
    """Return the first frame of plasma, for every time."""
    return plasma(x, y, 0.0)


PATTERNS: dict[str, Callable[[Plane, Plane, float], Plane]] = {
    "plasma": plasma,
    "bars": bars,
    "ball": ball,
    "checker": checker,
    "sweep": sweep,
    "still": still,
}
#: Patterns without edges, drawn at a third of the size and enlarged.
SMOOTH_PATTERNS = ("plasma", "still")


def draw(name: str, width: int, height: int, t: float) -> Pixels:
    """Return pattern ``name`` at ``t`` seconds, RGBA (height, width, 4)."""
    if name in SMOOTH_PATTERNS and min(width, height) >= 64:
        small = _evaluate(name, round(width / 3), round(height / 3), width / height, t)
        rgb = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        rgb = _evaluate(name, width, height, width / height, t)
    return rgb_to_rgba(np.asarray(rgb, np.uint8))


def _evaluate(name: str, width: int, height: int, aspect: float, t: float) -> NDArray[np.uint8]:
    """Return the pattern at every pixel, RGB (height, width, 3)."""
    x = np.linspace(-aspect, aspect, width, dtype=np.float32)[None, :] / max(1.0, aspect)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] / max(1.0, aspect)
    rgb = np.clip(PATTERNS[name](x, y, t) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rgb, (height, width, 3)))


class PatternSource(Source):
    """Draws each frame for its time."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name)
        pattern, _, query = name.partition("?")
        options = dict(parse_qsl(query))
        self._pattern = pattern or "plasma"
        try:
            self._width, self._height = parse_size(options.get("size", "256x256"))
            fps = float(options.get("fps", "30"))
        except ValueError:
            raise TextureError(f"{url}: options are size=WxH and fps=N") from None
        if self._pattern not in PATTERNS:
            raise TextureError(f"{url}: unknown pattern; choose from {', '.join(PATTERNS)}")
        if not (0 < fps <= 1000 and 8 <= self._width <= 4096 and 8 <= self._height <= 4096):
            raise TextureError(f"{url}: size must be 8x8 to 4096x4096 and fps 1 to 1000")
        self._pacer, self._count, self._fps = FramePacer(fps), 0, fps

    def _read(self, timeout: float) -> Pixels | None:
        if not self._pacer.wait(timeout):
            return None
        self._count += 1
        return draw(self._pattern, self._width, self._height, self._count / self._fps)


TRANSPORT = Transport(
    scheme="pattern",
    title="Patterns",
    source=PatternSource,
    names=lambda: list(PATTERNS),
    rank=2,
    default_source="plasma",
)
