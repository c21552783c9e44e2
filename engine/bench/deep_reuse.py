"""``python -m engine.bench.deep_reuse CLIP…``: what ``/regions change`` saves on a U-Net, and what it changes.

Both streams take the same frames in turns, and the CPU time of a turn is compared; on a GPU wall-clock time. PSNR is
against the output of the stream that computes everything, over all frames. ``repeated`` is that of its last frame
shown again, the least that reuse has to surpass. ``still`` is a clip with an object of 15 % that moves before the
first frame of the first clip.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.compile import Accelerator
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.models import Model, load, pick_device
from engine.runtime.allocator import retain_freed_memory
from engine.runtime.device import synchronize
from engine.shared.clips import read_square_frames
from engine.shared.frame import Frame, Pixels
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

SIDE, OBJECT_SHARE = 256, 0.15
#: Frames of a turn: a multiple of the interval at which the deep levels are computed.
TURN_FRAMES = 8


@dataclass(frozen=True)
class Comparison:
    """Milliseconds a frame of the dense and the reusing stream, and PSNR in dB of the second and of repeated frames."""

    dense_ms: float
    reuse_ms: float
    psnr: float
    repeated_psnr: float

    def __str__(self) -> str:
        return (
            f"{self.dense_ms:6.2f} ms, reused {self.reuse_ms:6.2f} ms, ratio {self.dense_ms / self.reuse_ms:.2f}"
            f"   PSNR {self.psnr:4.1f} dB, repeated {self.repeated_psnr:4.1f} dB"
        )


def move_object(background: Pixels, picture: Pixels, count: int) -> list[Pixels]:
    """Return frames in which ``picture``, scaled to a share of OBJECT_SHARE, moves before ``background``."""
    side = len(background)
    edge = round(side * OBJECT_SHARE**0.5)
    scaled, frames = np.asarray(cv2.resize(picture, (edge, edge), interpolation=cv2.INTER_AREA), np.uint8), []
    for i in range(count):
        x, y = (int((side - edge) / 2 * (1 + part)) for part in (np.sin(i / 12), np.cos(i / 17)))
        frame = background.copy()
        frame[y : y + edge, x : x + edge] = scaled
        frames.append(frame)
    return frames


def psnr(one: Sequence[Pixels], two: Sequence[Pixels]) -> float:
    """Return the peak signal-to-noise ratio in dB of two lists of pictures, infinite where they are equal."""
    squares = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(one, two, strict=True)]
    error = float(np.mean(squares))
    return float("inf") if error == 0.0 else 10.0 * float(np.log10(255.0**2 / error))


def compare(streams: Sequence[Stream], pictures: Sequence[NDArray[np.uint8]]) -> Comparison:
    """Pass RGB ``pictures`` through the dense and the reusing stream in turns; the first turn is not counted."""
    device = streams[0].model.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    outputs: list[list[Pixels]] = [[], []]
    seconds: list[list[float]] = [[], []]
    frames = [Frame(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), i, i / 30) for i, picture in enumerate(pictures)]
    for begin in range(0, len(frames) - TURN_FRAMES + 1, TURN_FRAMES):
        for k, stream in enumerate(streams):
            start = clock()
            for frame in frames[begin : begin + TURN_FRAMES]:
                finished = stream.step([frame]) or []
                outputs[k] += [one.pixels[..., :3] for one in finished] if begin else []
            synchronize(device)
            if begin:
                seconds[k].append((clock() - start) / TURN_FRAMES)
    dense_ms, reuse_ms = (float(np.median(times)) * 1000 for times in seconds)
    dense, reused = outputs
    return Comparison(dense_ms, reuse_ms, psnr(dense, reused), psnr(dense[1:], dense[:-1]))


def open_streams(model: Model, accelerate: str, values: dict[str, Value], first: Pixels) -> list[Stream]:
    """Return a stream that computes everything and one that reuses, compiled as ``accelerate`` says."""
    streams, accelerator = [], Accelerator(accelerate, model.device)
    for mode in ("off", "change"):
        stream = Stream(model, SIDE, SIDE, blocking=True)
        stream.apply(Snapshot(values | {"/regions": mode}))
        counts = count_rows(stream.snapshot.diffusion, len(stream.plan.steps))
        for _ in range(2 * TURN_FRAMES):  # the compiled denoiser has other signatures in full and with reused features
            stream.step([Frame(cv2.cvtColor(first, cv2.COLOR_RGB2RGBA))])
            accelerator.compile_all(lambda: model.compiled_modules, counts)
        stream.restart()
        streams.append(stream)
    accelerator.close()
    return streams


def main() -> None:
    """Print a line for each clip and number of steps."""
    parser = argparse.ArgumentParser(description="Measure the reuse of a U-Net's deep levels from frame to frame.")
    parser.add_argument("clips", type=Path, nargs="+", help="video files")
    parser.add_argument("--frames", type=int, default=72, help="frames of each clip (default: 72)")
    parser.add_argument("--model", default="pocket", help="model name or folder (default: pocket)")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: auto)")
    parser.add_argument("--accelerate", choices=ACCELERATORS, default="compile", help="backend (default: compile)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="denoising steps (default: 1 2 4)")
    parser.add_argument("--strength", type=float, default=0.5, help="strength, 0 to 1 (default: 0.5)")
    parser.add_argument("--share", type=float, default=0.25, help="value of /regions/share (default: 0.25)")
    options = parser.parse_args()
    retain_freed_memory()  # as the engine's process does
    model = load(options.model, pick_device(), options.dtype)
    clips = {path.stem: read_square_frames(path, SIDE, options.frames) for path in options.clips}
    firsts = [pictures[0] for pictures in clips.values()]
    clips["still"] = move_object(firsts[0], firsts[-1], options.frames)
    for steps in options.steps:
        values: dict[str, Value] = {"/prompt": "neon tunnel, magenta and cyan", "/strength": options.strength}
        values |= {"/steps": steps, "/regions/share": options.share}
        streams = open_streams(model, options.accelerate, values, firsts[0])
        for name, pictures in clips.items():
            for stream in streams:
                stream.restart()
            print(f"{name:12s} {steps} steps: {compare(streams, pictures)}", flush=True)
        for stream in streams:
            stream.close()


if __name__ == "__main__":
    main()
