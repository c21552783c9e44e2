"""``python -m engine.bench.flicker CLIP…``: flicker of the output, with each setting against it on and off.

Flicker is change between two output frames that is not motion. The next frame is warped back along the optical flow of
the input, and the mean absolute difference counts where that flow is reliable (Lai et al., "Blind Video Temporal
Consistency", arXiv 1808.00449). Detail is the mean strength of the output's edges. It exposes settings that flicker
less only because they blur.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.diffusion.stream import Stream
from engine.models import Model, load, pick_device
from engine.shared.clips import read_square_frames
from engine.shared.frame import Frame, Pixels
from engine.shared.optical_flow import OpticalFlow, warp
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

SIZE = 256
#: Setting → the parameters that it adds to the plain ones.
SETTINGS: dict[str, dict[str, Value]] = {
    "plain": {},
    "consistency 1, 1 frame": {"/consistency": 1.0},
    "consistency 1, 4 frames": {"/consistency": 1.0, "/consistency/frames": 4},
    "consistency 1, mean of 4": {"/consistency": 1.0, "/consistency/frames": 4, "/consistency/merge": "mean"},
    "smoothing 0.5": {"/smoothing": 0.5},
    "smoothing 0.8": {"/smoothing": 0.8},
    "feedback 0.5": {"/feedback": 0.5},
    "motion 0.8": {"/consistency/motion": 0.8},
    "motion 0.9": {"/consistency/motion": 0.9},
    "consistency 1, motion 0.9": {"/consistency": 1.0, "/consistency/frames": 2, "/consistency/motion": 0.9},
}


@dataclass(frozen=True)
class Flicker:
    """Mean absolute change that is not motion, and mean edge strength, both on the scale 0..255."""

    change: float
    detail: float


def estimate_reliable_flow(first: Pixels, second: Pixels) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the flow from ``first`` to ``second``, (H, W, 2) in pixels, and where its round trip closes, (H, W)."""
    grey_first, grey_second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second))
    flow = OpticalFlow().estimate(grey_first, grey_second)
    tolerance = 0.5 + 0.01 * np.linalg.norm(flow.forward, axis=2) ** 2
    return flow.forward, flow.round_trip_error() < tolerance


def measure(inputs: Sequence[Pixels], outputs: Sequence[Pixels]) -> Flicker:
    """Return the flicker of ``outputs`` for ``inputs``, lists of the same length, RGB (H, W, 3) uint8 each."""
    changes = []
    for k in range(len(outputs) - 1):
        flow, reliable = estimate_reliable_flow(inputs[k], inputs[k + 1])
        difference = np.abs(warp(outputs[k + 1].astype(np.float32), flow) - outputs[k]).mean(2)
        changes.append(difference[reliable].mean())
    edges = []
    for picture in outputs:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges.append(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)).mean() / 4)
    return Flicker(float(np.mean(changes)), float(np.mean(edges)))


def transform(model: Model, inputs: Sequence[Pixels], values: Mapping[str, Value]) -> list[Pixels]:
    """Pass RGB ``inputs`` through a new stream with ``values`` and return the outputs, RGB."""
    stream = Stream(model, SIZE, SIZE, blocking=True)
    stream.apply(Snapshot(values))
    outputs: list[Frame] = []
    for k, picture in enumerate(inputs):
        outputs += stream.step([Frame(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), k, k / 30)]) or []
    while stream.slots:
        outputs += stream.step([]) or []
    stream.close()
    return [np.ascontiguousarray(frame.pixels[..., :3]) for frame in outputs]


def main() -> None:
    """Print a line for each setting on each clip."""
    parser = argparse.ArgumentParser(description="Measure the flicker of the output on video clips.")
    parser.add_argument("clips", type=Path, nargs="+", help="video files")
    parser.add_argument("--frames", type=int, default=40, help="frames of each clip (default: 40)")
    parser.add_argument("--model", default="pocket", help="model name or folder (default: pocket)")
    parser.add_argument(
        "--prompt", default="neon tunnel, magenta and cyan", help="prompt (default: neon tunnel, magenta and cyan)"
    )
    parser.add_argument("--strength", type=float, default=0.5, help="strength, 0 to 1 (default: 0.5)")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--sheet", type=Path, help="PNG for four frames of each setting (default: none)")
    options = parser.parse_args()
    if options.sheet and os.path.lexists(options.sheet):
        parser.error(f"--sheet {options.sheet} exists; choose another name")
    model = load(options.model, pick_device())
    common: dict[str, Value] = {"/prompt": options.prompt, "/strength": options.strength, "/steps": options.steps}
    rows = []
    for path in options.clips:
        inputs = read_square_frames(path, SIZE, options.frames)
        print(f"{path.stem}, {len(inputs)} frames: the input itself changes by {measure(inputs, inputs).change:.2f}")
        plain: Flicker | None = None
        for name, values in SETTINGS.items():
            outputs = transform(model, inputs, common | values)
            result = measure(inputs, outputs)
            plain = plain or result
            print(
                f"  {name:26s} flicker {result.change:6.2f} ({result.change / plain.change:4.0%} of plain)"
                f"   detail {result.detail:5.2f} ({result.detail / plain.detail:4.0%})"
            )
            rows.append(np.concatenate([inputs[10], *outputs[10:13]], 1))
    if options.sheet:
        cv2.imwrite(str(options.sheet), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
