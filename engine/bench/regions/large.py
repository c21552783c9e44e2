"""Time of a step by the share that is computed, at the real sizes of SD3 medium and Lumina-Next, with random weights.

Layers are alike, so few of them stand for all 24: as many as let a full step take some seconds. Only the last one of
SD3 differs, which has no text stream. With fewer layers it has more weight, and text tokens less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.bench.measure import Row
from engine.bench.regions.large_models import LARGE_MODELS, LAYERS, build_large_model
from engine.bench.regions.reuse import DenoiserClock
from engine.diffusion.regions import fills_cache, is_dense_step
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.runtime.device import synchronize
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

K = TypeVar("K")
SHARES = (0.5, 0.25, 0.125)
#: Largest accepted time of a step, relative to a full one, and smallest speedup of all steps.
MAX_RATIOS, MIN_SPEEDUP = {0.25: 0.40, 0.125: 0.30}, 2.2
#: Seconds of a full step where single ones are timed, and where all are run.
STEP_SECONDS, RUN_STEP_SECONDS = 3.0, 1.0
STEPS = 28
TEXT: dict[str, Value] = {"/mode": "text", "/eta": 0.0, "/steps": STEPS}
#: The paper's setting for SD3.
PAPER: dict[str, Value] = {
    "/regions": "focus", "/regions/share": 0.125, "/regions/start": 4, "/regions/reset": "12 20",
}  # fmt: skip


class StepType(NamedTuple):
    """A step: a ``share`` of the tokens, 1 for all of them with the cache filled, None for all without regions."""

    share: float | None
    with_text: bool = True


def list_steps(has_text_tokens: bool) -> list[StepType]:
    """Return the steps to time, the full one first; without text tokens there are none to leave out."""
    parts = [StepType(share, text) for text in ((True, False) if has_text_tokens else (True,)) for share in SHARES]
    return [StepType(None), StepType(1.0), *parts]


def measure(device: torch.device, dtype: torch.dtype, sides: Sequence[int], quick: bool) -> Iterator[Row]:
    """Time the steps of each model at each size, and all steps of a picture: from single ones, and in one run."""
    dtype_name = str(dtype).removeprefix("torch.")
    for name, large in LARGE_MODELS.items():
        for side in sides:
            common: Row = {"part": "real sizes", "model": name, "side": side, "dtype": dtype_name}
            layer_seconds = 1e9 if quick else time_layer(name, side, dtype, device)
            layers = count_layers(layer_seconds, STEP_SECONDS, large.fewest_layers)
            model = build_large_model(name, layers, dtype, device)
            seconds = time_steps(model, side, list_steps(large.has_text_tokens), 1 if quick else 2)
            yield from describe_steps(common | {"layers": layers}, seconds)
            yield describe_computed(common | {"layers": layers}, seconds)
            fewer = count_layers(layer_seconds, RUN_STEP_SECONDS, large.fewest_layers)
            if fewer != layers:
                model = build_large_model(name, fewer, dtype, device)
            full, sparse = (run_all_steps(model, side, values) for values in ({}, PAPER))
            yield describe_picture(common | {"layers": fewer, "what": f"{STEPS} steps, run"}, full, sparse)


def time_layer(name: str, side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of a full step of the fewest layers, for one of them."""
    layers = LARGE_MODELS[name].fewest_layers
    step = open_step(build_large_model(name, layers, dtype, device), side, StepType(None))
    return time_alternately({"step": step}, 1, device)["step"][0] / layers


def count_layers(layer_seconds: float, step_seconds: float, fewest: int) -> int:
    """Return the number of layers, from ``fewest`` to all, with which a full step takes about ``step_seconds``."""
    return max(fewest, min(LAYERS, round(step_seconds / layer_seconds)))


def open_step(model: Model, side: int, step_type: StepType) -> Callable[[], Tensor]:
    """Return a step of a frame that can be repeated, with what regions add to the denoiser; its cache is filled."""
    values = TEXT | {"/regions/text": step_type.with_text}
    if step_type.share is not None:
        values |= {"/regions": "focus", "/regions/share": min(step_type.share, 0.5)}
    stream = Stream(model, side, side, blocking=True)
    stream.apply(Snapshot(values))
    with torch.inference_mode():
        frames = [Frame(np.zeros((side, side, 4), np.uint8))]
        stream._encode(frames, stream._prepare(frames))
        start, slot = stream.snapshot.diffusion.regions.start, stream.slots[0]
        slot.position = start - 1
        if step_type.share is not None and step_type.share < 1.0:
            stream._denoise()
            slot.position = start
    return stream._denoise


def time_steps(model: Model, side: int, step_types: Sequence[StepType], rounds: int) -> dict[StepType, float]:
    """Return the seconds of each type of step, the median of ``rounds``."""
    steps = {step_type: open_step(model, side, step_type) for step_type in step_types}
    times = time_alternately(steps, rounds, model.device)
    return {step_type: float(np.median(seconds)) for step_type, seconds in times.items()}


def time_alternately(runs: Mapping[K, Callable[[], object]], rounds: int, device: torch.device) -> dict[K, list[float]]:
    """Return the seconds of ``rounds`` runs of each, one of each in turn, after a run of each that does not count."""
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                synchronize(device)
                if number:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def run_all_steps(model: Model, side: int, values: Mapping[str, Value]) -> float:
    """Return the seconds of the denoiser in a picture from noise."""
    stream = Stream(model, side, side, blocking=True)
    stream.apply(Snapshot({**TEXT, **values}))
    clock, frames = DenoiserClock(stream), [Frame(np.zeros((side, side, 4), np.uint8))]
    while stream.step(frames) == []:
        frames = []
    stream.close()
    return clock.seconds


def describe_steps(common: Row, seconds: Mapping[StepType, float]) -> Iterator[Row]:
    """Yield a row for each type of step: its time relative to the full one, and whether that is small enough.

    The full step is diffusers' module, share 1 the regional one. Where that is faster by itself, the second ratio is
    the fairer one.
    """
    full, all_tokens = seconds[StepType(None)], seconds[StepType(1.0)]
    for step_type, time_of_type in seconds.items():
        row: Row = {"what": "full step"} if step_type.share is None else {"what": "step", "share": step_type.share}
        row |= {} if step_type.with_text else {"text": "left out"}
        row |= {"ms": round(time_of_type * 1000, 1), "ratio": round(time_of_type / full, 3)}
        row["ratio_to_share_1"] = round(time_of_type / all_tokens, 3)
        yield common | row | check(row["ratio"], at_most=MAX_RATIOS.get(step_type.share or 0.0))


def describe_computed(common: Row, seconds: Mapping[StepType, float]) -> Row:
    """Return the row of all steps at the paper's setting, from the times of single ones."""
    settings = Snapshot(PAPER).diffusion.regions
    part = seconds[StepType(settings.share)]
    sparse = 0.0
    for position in range(STEPS):
        if fills_cache(position, settings.start, settings.resets):
            sparse += seconds[StepType(1.0)]
        else:
            is_dense = is_dense_step(position, settings.start, settings.resets)
            sparse += seconds[StepType(None)] if is_dense else part
    return describe_picture(common | {"what": f"{STEPS} steps, computed"}, STEPS * seconds[StepType(None)], sparse)


def describe_picture(common: Row, full: float, sparse: float) -> Row:
    """Return the row of all steps: seconds of both sides and the speedup, and whether that is large enough."""
    speedup = round(full / sparse, 2)
    row = {
        "share": PAPER["/regions/share"],
        "full_s": round(full, 2),
        "regions_s": round(sparse, 2),
        "speedup": speedup,
    }
    return common | row | check(speedup, at_least=MIN_SPEEDUP)


def check(value: float, at_most: float | None = None, at_least: float | None = None) -> Row:
    """Return whether a value stays within its limit; nothing where it has none."""
    if at_most is not None:
        return {"at_most": at_most, "holds": value <= at_most}
    return {} if at_least is None else {"at_least": at_least, "holds": value >= at_least}
