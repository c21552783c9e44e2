"""``python -m engine.bench.flicker CLIP…``: how much the output flickers, with each means against it on and off.

Flicker is what changes between two output frames and is not motion: the next frame is taken back along the optical flow of the
input, and the mean absolute difference is counted where that flow is sure (Lai et al., "Blind Video Temporal Consistency",
arXiv 1808.00449). Detail is the mean strength of the output's edges: what flickers less only because it is blurred shows there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from engine.diffusion.stream import Stream
from engine.models import Model, load, pick_device, pick_dtype
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

SIZE = 256
#: What is compared: a name, and what is set for it beside the plain settings.
MEANS: dict[str, dict[str, Value]] = {
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
    """Mean absolute change that is no motion, of 255, and the mean strength of edges."""

    change: float
    detail: float


def sure_flow(one: Pixels, two: Pixels) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Optical flow from ``one`` to ``two``, (H, W, 2) in pixels, and where going there and back comes home."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    a, b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (one, two))
    there, back = method.calc(a, b, None), method.calc(b, a, None)
    error = np.linalg.norm(there + _sampled(back, there), axis=2)
    return there, error < 0.5 + 0.01 * np.linalg.norm(there, axis=2) ** 2


def _sampled(picture: NDArray, flow: NDArray[np.float32]) -> NDArray:
    """``picture`` read at each pixel's place plus its flow."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def measure(inputs: Sequence[Pixels], outputs: Sequence[Pixels]) -> Flicker:
    """Flicker of ``outputs`` made of ``inputs``, RGB (H, W, 3) uint8 each and as many."""
    changes = []
    for k in range(len(outputs) - 1):
        flow, sure = sure_flow(inputs[k], inputs[k + 1])
        difference = np.abs(_sampled(outputs[k + 1].astype(np.float32), flow) - outputs[k]).mean(2)
        changes.append(difference[sure].mean())
    edges = []
    for picture in outputs:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges.append(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)).mean() / 4)
    return Flicker(float(np.mean(changes)), float(np.mean(edges)))


def clip(path: Path, count: int) -> list[Pixels]:
    """The first ``count`` frames of a clip, the middle square at 256², RGB."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            side = min(picture.shape[:2])
            y, x = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
            frames.append(cv2.resize(picture[y : y + side, x : x + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA))
            if len(frames) == count:
                break
    return frames


def transformed(model: Model, inputs: Sequence[Pixels], values: Mapping[str, Value]) -> list[Pixels]:
    """Every input through a stream of its own, RGB."""
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
    """Prints a line for each means on each clip."""
    parser = argparse.ArgumentParser(description="Measures flicker.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--prompt", default="neon tunnel, magenta and cyan")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="write four frames of each as one PNG")
    options = parser.parse_args()
    device = pick_device()
    model = load(options.model, device, pick_dtype("auto", device))
    rows = []
    for path in options.clips:
        inputs = clip(path, options.frames)
        print(f"{path.stem}, {len(inputs)} frames: the input itself changes by {measure(inputs, inputs).change:.2f}")
        plain: Flicker | None = None
        for name, extra in MEANS.items():
            common: dict[str, Value] = {
                "/prompt": options.prompt,
                "/strength": options.strength,
                "/steps": options.steps,
            }
            outputs = transformed(model, inputs, common | extra)
            found = measure(inputs, outputs)
            plain = plain or found
            print(
                f"  {name:26s} flicker {found.change:6.2f} ({found.change / plain.change:4.0%} of plain)"
                f"   detail {found.detail:5.2f} ({found.detail / plain.detail:4.0%})"
            )
            rows.append(np.concatenate([inputs[10], *outputs[10:13]], 1))
    if options.sheet:
        cv2.imwrite(str(options.sheet), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
