"""Ticks that overlap, as they do on a GPU: the same frames come out, and what depends on something waits for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion.stream import Stream
from engine.models import load
from engine.runtime.cuda_streams import CudaStreams
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
RNG = np.random.default_rng(5)
FRAMES = [Frame(RNG.integers(0, 256, (64, 64, 4), dtype=np.uint8), i) for i in range(8)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "values",
    [
        {"/steps": 1},
        {"/steps": 2, "/feedback": 0.6},
        {"/steps": 2, "/mask": "alpha", "/smoothing": 0.5},
        {"/mode": "text"},
    ],
    ids=["plain", "feedback", "mask", "text"],
)
def test_a_tick_may_begin_before_the_one_before_is_out(device: str, values: dict[str, Any]) -> None:
    model = load("pocket", torch.device(device), torch.float32)
    streams = [Stream(model, 64, 64) for _ in range(2)]
    for stream in streams:
        stream.apply(Snapshot({"/size": "64x64", **values}), wait=True)
    begun = [streams[0].begin([frame]) for frame in FRAMES]
    overlapped = [frame for one in begun if one is not None for frame in one.result()]
    after_another = [frame for frame in FRAMES for frame in streams[1].step([frame]) or []]
    assert len(overlapped) >= len(FRAMES) - 3
    for one, other in zip(overlapped, after_another, strict=True):
        assert (one.sequence, one.snapshot) == (other.sequence, other.snapshot)
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= (0 if device == "cpu" else 3)


class Told(CudaStreams):
    """Lanes that say what is asked of them."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.said: list[str] = []

    def input_stream(self, after_main: bool = False, after_output: bool = False) -> AbstractContextManager[object]:
        self.said.append("in" + " after all" * after_main + " after output" * after_output)
        return nullcontext()

    def sync_input(self, *_tensors: torch.Tensor | None) -> None:
        self.said.append("main after in")

    def output_stream(self) -> AbstractContextManager[object]:
        self.said.append("out after main")
        return nullcontext()


def test_what_waits_for_what() -> None:
    stream = Stream(load("pocket", torch.device("cpu"), torch.float32), 64, 64)
    stream._lanes = lanes = Told()

    def tick(**values: float) -> list[str]:
        lanes.said.clear()
        stream.apply(Snapshot({"/size": "64x64", "/steps": 1, **{f"/{name}": value for name, value in values.items()}}))
        stream.step(FRAMES[:1])
        return lanes.said

    plain = ["in", "in", "main after in", "main after in", "out after main"]
    assert tick() == ["in after all", *plain[1:]], "the model has just been loaded"
    assert tick() == plain
    assert tick(feedback=0.5) == ["in after output", *plain[1:]]
    assert tick() == plain
    stream.restart()
    assert tick() == ["in after all", *plain[1:]], "what failed may have been changed"


def test_lanes_are_streams_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits that are asked of CUDA, on streams that only write them down."""
    waits: list[tuple[str, str]] = []
    names = iter(("in", "out"))

    class Recorder(SimpleNamespace):
        def wait_stream(self, other: Recorder) -> None:
            waits.append((self.name, other.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: Recorder(name=next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Recorder(name="main"))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    lanes = CudaStreams(torch.device("cuda"))
    for work, expected in (
        (lambda: lanes.input_stream(), []),
        (lambda: lanes.input_stream(after_output=True), [("in", "out")]),
        (lambda: lanes.input_stream(after_main=True), [("in", "main"), ("in", "out")]),
        (lambda: lanes.sync_input(None), [("main", "in")]),
        (lambda: lanes.output_stream(), [("out", "main")]),
    ):
        waits.clear()
        work()
        assert waits == expected
