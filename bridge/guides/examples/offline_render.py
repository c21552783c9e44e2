"""Render frames offline: every frame, in order, the same pixels at every run.

python offline_render.py frames/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render


def bouncing_disc(count: int, side: int) -> Iterator[Frame]:
    """Yield ``count`` frames of a disc that crosses a dark field, 25 a second."""
    for i in range(count):
        pixels = np.full((side, side, 4), 255, np.uint8)
        pixels[..., :3] = 20
        cv2.circle(pixels, (side * (i + 1) // (count + 1), side // 2), side // 5, (250, 160, 40, 255), -1)
        yield Frame(pixels, sequence=i, captured_at=i / 25)


def main(folder: str) -> None:
    """Render eight frames into ``folder`` as PNGs."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    snapshot = Snapshot({"/prompt": "neon tunnel, magenta and cyan", "/size": "128x128", "/steps": 2, "/seed": 3})
    for output in render(bouncing_disc(8, 128), snapshot, EngineOptions(device="cpu")):
        cv2.imwrite(f"{folder}/{output.sequence:05d}.png", cv2.cvtColor(output.pixels, cv2.COLOR_RGBA2BGR))


if __name__ == "__main__":
    main(*sys.argv[1:])
