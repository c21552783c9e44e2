"""Overlapping ticks, as on a GPU: the same frames come out, and each CUDA stream waits for what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion.stream import Stream
from engine.models import load
from engine.runtime.cuda_streams import CudaStreams, NotFinite, OutputSums, PendingOutput
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
    ids=["default", "feedback", "mask", "text"],
)
def test_a_tick_may_begin_before_the_previous_output_is_done(device: str, values: dict[str, Any]) -> None:
    model = load("pocket", torch.device(device), torch.float32)
    streams = [Stream(model, 64, 64) for _ in range(2)]
    for stream in streams:
        stream.apply(Snapshot({"/size": "64x64", **values}))
        stream.settle()
    outputs = [streams[0].begin([frame]) for frame in FRAMES]
    overlapped = [frame for output in outputs if output is not None for frame in output.result()]
    sequential = [frame for frame in FRAMES for frame in streams[1].step([frame]) or []]
    assert len(overlapped) >= len(FRAMES) - 3
    for one, other in zip(overlapped, sequential, strict=True):
        assert (one.sequence, one.snapshot) == (other.sequence, other.snapshot)
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= (0 if device == "cpu" else 3)


class RecordedStreams(CudaStreams):
    """CUDA streams that record the calls to them."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.calls: list[str] = []

    def input_stream(self, after_main: bool = False, after_output: bool = False) -> AbstractContextManager[object]:
        self.calls.append("in" + " after all" * after_main + " after output" * after_output)
        return nullcontext()

    def sync_input(self, *_tensors: torch.Tensor | None) -> None:
        self.calls.append("main after in")

    def output_stream(self) -> AbstractContextManager[object]:
        self.calls.append("out after main")
        return nullcontext()


def test_the_input_waits_for_what_it_depends_on() -> None:
    streams = RecordedStreams()
    stream = Stream(load("pocket", torch.device("cpu"), torch.float32), 64, 64, cuda_streams=streams)

    def tick(**values: float) -> list[str]:
        streams.calls.clear()
        stream.apply(Snapshot({"/size": "64x64", "/steps": 1, **{f"/{name}": value for name, value in values.items()}}))
        stream.step(FRAMES[:1])
        return streams.calls

    usual = ["in", "in", "main after in", "main after in", "out after main"]
    assert tick() == ["in after all", *usual[1:]], "after a load"
    assert tick() == usual
    assert tick(feedback=0.5) == ["in after output", *usual[1:]]
    assert tick() == usual
    stream.restart()
    assert tick() == ["in after all", *usual[1:]], "after a failure"


def test_the_streams_wait_for_each_other_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the waits queued on CUDA, with streams that only record them."""
    waits: list[tuple[str, str]] = []
    names = iter(("in", "out"))

    class Recorder(SimpleNamespace):
        def wait_stream(self, other: Recorder) -> None:
            waits.append((self.name, other.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: Recorder(name=next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Recorder(name="main"))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    streams = CudaStreams(torch.device("cuda"))
    for work, expected in (
        (lambda: streams.input_stream(), []),
        (lambda: streams.input_stream(after_output=True), [("in", "out")]),
        (lambda: streams.input_stream(after_main=True), [("in", "main"), ("in", "out")]),
        (lambda: streams.sync_input(None), [("main", "in")]),
        (lambda: streams.output_stream(), [("out", "main")]),
    ):
        waits.clear()
        work()
        assert waits == expected


def test_checks_are_reported_with_the_frames_unless_the_model_is_at_fault() -> None:
    reported: list[Sequence[bool]] = []
    pixels, checks = torch.zeros(1, 2, 2, 4, dtype=torch.uint8), [torch.tensor(True), torch.tensor(False)]

    def output(total: float) -> PendingOutput:
        sums = OutputSums(torch.tensor([0.0, total, 1.0]), torch.float16)
        return PendingOutput([(FRAMES[0], 3)], pixels, sums, None, checks, reported.append)

    (frame,) = output(1.5).result()
    assert frame.snapshot == 3
    assert reported == [[True, False]]
    with pytest.raises(NotFinite):
        output(float("nan")).result()
    assert len(reported) == 1, "a user's effect is not blamed for the model"
