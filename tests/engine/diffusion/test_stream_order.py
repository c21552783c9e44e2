"""Every feature with overlapping CUDA streams: nothing is read before it is written, or reused while it is read."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch

from engine.diffusion.stream import Stream
from engine.image.hooks import Hooks
from engine.models import Model
from engine.runtime.cuda_streams import CudaStreams
from tests.engine.meta import ADAPTERS, FEATURES, Feature, ticks
from tests.engine.stream_checker import CUDA, ClockedStream, StreamChecker

TICKS = 7


def play(
    checker: StreamChecker, cuda_streams: CudaStreams, stream: Stream, feature: Feature, folder: Path | None = None
) -> list[str]:
    """Run a feature as the frame loop does: an output is waited for when the next tick has begun."""
    output_stream = cuda_streams._output
    pending: deque[tuple[object, dict[str, int]]] = deque()
    with checker:
        for number, tick in enumerate(ticks(stream, feature, TICKS, folder)):
            pending.append((tick(), dict(output_stream.clock)))
            while len(pending) > 1:
                checker.host.join(pending.popleft()[1])  # the event of PendingOutput; then it is dropped
            if number == TICKS - 3:
                stream.restart()
    stream.close()
    return checker.faults


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_is_ordered(name: str, meta_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    assert not play(checker, cuda_streams, Stream(meta_model, 64, 64, cuda_streams=cuda_streams), FEATURES[name])


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_is_ordered(
    name: str, meta_adapters: Path, meta_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    stream = Stream(meta_model, 64, 64, cuda_streams=cuda_streams)
    assert not play(checker, cuda_streams, stream, ADAPTERS[name], meta_adapters)


def test_users_effects_are_ordered(meta_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("before", "latent", "after"):
        (tmp_path / f"{stage}.py").write_text(f"def {stage}(x, values, seconds):\n    return x * 0.5\n")
    hooks = Hooks(tmp_path)
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    assert not play(
        checker, cuda_streams, Stream(meta_model, 64, 64, hooks=hooks, cuda_streams=cuda_streams), FEATURES["strength"]
    )
    assert not hooks.notes
    hooks.close()


def test_two_streams_that_share_a_device_are_ordered(meta_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    old, new = (Stream(meta_model, 64, 64, cuda_streams=cuda_streams) for _ in range(2))
    with checker:
        for one, other in zip(
            ticks(old, FEATURES["all at once"], TICKS), ticks(new, FEATURES["smoothing"], TICKS), strict=True
        ):
            one()
            other()
    for stream in (old, new):
        stream.close()
    assert not checker.faults


def test_a_tick_that_fails_leaves_no_disorder(meta_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    stream = Stream(meta_model, 64, 64, cuda_streams=cuda_streams)
    decode = meta_model.decode
    with checker:
        for number, tick in enumerate(ticks(stream, FEATURES["all at once"], TICKS)):
            if number in (2, 4):
                monkeypatch.setattr(meta_model, "decode", lambda _latents: torch.zeros(1, device="cpu") / 0 + "x")
                with pytest.raises(TypeError):
                    tick()
                monkeypatch.setattr(meta_model, "decode", decode)
                stream.restart()
            else:
                tick()
    stream.close()
    assert not checker.faults


class FaultyStreams(CudaStreams):
    """Streams that leave one thing out."""

    fault = ""

    def input_stream(self, after_main: bool = False, after_output: bool = False) -> object:
        return super().input_stream(after_main, after_output and self.fault != "feedback does not wait")

    def sync_input(self, *tensors: torch.Tensor | None) -> None:
        if self.fault == "main does not wait":
            self.record(*tensors)
        elif self.fault == "nothing is recorded":
            super().sync_input()
        else:
            super().sync_input(*tensors)

    def record(self, *tensors: torch.Tensor | None) -> None:
        if self.fault != "nothing is recorded":
            super().record(*tensors)

    def output_stream(self) -> object:
        if self.fault == "the output does not wait":
            return torch.cuda.stream(self._output)
        return super().output_stream()


@pytest.mark.parametrize(
    ("fault", "feature", "message"),
    [
        ("", "smoothing", ""),
        ("main does not wait", "plain", "main reads before in wrote"),
        ("the output does not wait", "plain", "out reads before main wrote"),
        ("feedback does not wait", "feedback", "in reads before out wrote"),
        ("nothing is recorded", "smoothing", "out still reads what in freed"),
    ],
)
def test_the_checker_finds_a_fault(
    fault: str, feature: str, message: str, meta_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = StreamChecker()
    checker.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: ClockedStream(next(names), checker.host))
    names = iter(("in", "out"))
    cuda_streams = FaultyStreams(CUDA)
    cuda_streams.fault = fault
    faults = play(checker, cuda_streams, Stream(meta_model, 64, 64, cuda_streams=cuda_streams), FEATURES[feature])
    assert any(message in line for line in faults) == bool(message), faults[:3]
