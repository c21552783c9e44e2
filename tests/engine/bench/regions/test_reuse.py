"""Whole-frame reuse: which steps and frames are computed, and what is shown of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.bench.regions import reuse
from engine.bench.regions.from_noise import Painter, Paintings, Sampling
from engine.bench.regions.live import LiveMethod, Player, play_in_turns
from engine.bench.regions.reuse import DenoiserClock, computed_steps, repeat_outputs
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot

REGIONS = Snapshot({"/regions/start": 4, "/regions/reset": "8 30"}).diffusion.regions


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(0, {0, 1, 2, 3, 8}), (2, {0, 1, 2, 3, 5, 7, 8, 9, 11}), (3, {0, 1, 2, 3, 6, 8, 9}), (1, set(range(12)))],
)
def test_full_steps_and_one_of_every_interval_are_computed(interval: int, expected: set[int]) -> None:
    assert computed_steps(12, interval, REGIONS) == expected


def test_a_repeated_velocity_is_one_larger_step(model: Model) -> None:
    sampling, paintings = Sampling("reuse", 12, interval=3), Paintings()
    painter = Painter(model, 32)
    painter.paint("a wave", 7, sampling, paintings)
    painter.paint("a wave", 7, Sampling("dense", 12), paintings)
    stream = Stream(model, 32, 32, blocking=True)
    values = {"/mode": "text", "/eta": 0.0, "/prompt": "a wave", "/seed": 7}
    stream.apply(Snapshot({**values, "/steps": 12}))
    assert sampling.computed == {0, 1, 2, 3, 6, 9}
    schedule = " ".join(f"{step.t:.6f}" for i, step in enumerate(stream.plan.steps) if i in (0, 1, 2, 3, 6, 9))
    stream.apply(Snapshot({**values, "/schedule": schedule}))
    outputs = stream.step([Frame(np.zeros((32, 32, 4), np.uint8))])
    while not outputs:
        outputs = stream.step([])
    difference = np.abs(outputs[0].pixels[..., :3].astype(int) - paintings.pictures[0])
    assert difference.max() <= 1
    assert np.abs(paintings.pictures[1].astype(int) - paintings.pictures[0]).max() > 2, "12 steps differ from 6"
    assert paintings.computed == [0.5, 1.0]


def test_repeated_outputs_tick_by_tick() -> None:
    frames = list(range(8))
    assert repeat_outputs(frames, 1.0, 1) == frames
    assert repeat_outputs(frames, 0.5, 1) == [0, 0, 2, 2, 4, 4, 6, 6]
    assert repeat_outputs(frames, 1.0, 3) == [0, 0, 0, 1, 2, 3, 4, 5]
    assert repeat_outputs(frames, 0.5, 2) == [0, 0, 0, 0, 2, 2, 4, 4]
    assert repeat_outputs(frames, 0.25, 1) == [0, 0, 0, 0, 4, 4, 4, 4]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_stream_of_every_second_frame_shows_these_outputs(model: Model, steps: int) -> None:
    rng = np.random.default_rng(2)
    frames = [Frame(rng.integers(0, 255, (32, 32, 4), dtype=np.uint8), i, i / 30) for i in range(20)]
    dense = Player(model, 32, steps, LiveMethod("off"))
    shown = play_in_turns([dense], frames)
    outputs = shown[steps - 1 :]
    expected = repeat_outputs(outputs, 0.5, steps)
    actual = Player(model, 32, steps, LiveMethod("every second frame", interval=2)).play(frames)
    for tick in range(2 * steps, len(expected)):
        assert np.abs(actual[tick].astype(int) - expected[tick]).max() <= 1, tick
    assert np.abs(actual[8].astype(int) - actual[10]).max() > 5, "the frames differ"


def test_the_clock_counts_the_denoiser_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def denoise() -> torch.Tensor:
        now[0] += 3.0
        return torch.ones(1)

    monkeypatch.setattr(reuse.time, "perf_counter", lambda: now[0])
    stream: Any = SimpleNamespace(_denoise=denoise, model=SimpleNamespace(device=torch.device("cpu")))
    clock = DenoiserClock(stream)
    assert stream._denoise().item() == 1.0
    now[0] += 50.0
    stream._denoise()
    assert clock.seconds == 6.0
