"""Work beside the frame loop: it is finished when it is handed over, and its memory outlives what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from engine.diffusion.stream import Stream
from engine.models import Condition, Model, load
from engine.runtime.handover import finish_work, on_side_stream, side_stream, tensors_of
from tests.engine.meta import FEATURES, load_meta, ticks
from tests.engine.stream_checker import CUDA, StreamChecker

T = TypeVar("T")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load_meta("pocket")


def test_off_cuda_work_runs_where_it_is_called() -> None:
    with side_stream(CPU) as hand_over:
        value = object()
        assert hand_over(value) is value
    assert on_side_stream(CPU, lambda x, y=0: x + y)(1, y=2) == 3
    finish_work(CPU)


@dataclass
class Holder:
    """An object of no class of the engine."""

    tensor: torch.Tensor


def test_the_tensors_of_a_value_are_found_wherever_they_are() -> None:
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    layer = nn.BatchNorm1d(2)
    tensors = list(tensors_of({"a": [a, (b, "text", None)], "condition": Condition(c, mask=d), "layer": layer}))
    expected = [a, b, c, d, *layer.parameters(), *layer.buffers()]
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in expected}
    assert not list(tensors_of([Holder(a), 3, len])), "a library's own objects stay closed"
    round_trip: list[Any] = [a]
    round_trip.append(round_trip)
    assert list(tensors_of(round_trip)) == [a]


def test_a_stream_holds_its_model_its_prompts_and_its_noises() -> None:
    stream = Stream(load("pocket", CPU, torch.float32), 64, 64)
    tensors = {id(tensor) for tensor in tensors_of(stream)}
    assert stream.steering.conditioner.condition is not None
    for tensor in (stream.plan.noises, stream.steering.conditioner.condition.tokens):
        assert id(tensor) in tensors
    assert {id(parameter) for parameter in stream.model.denoiser.parameters()} <= tensors
    stream.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [("", ""), ("not handed over", "loop still reads what side freed"), ("not waited for", "loop reads before")],
)
def test_a_stream_that_was_warmed_up_on_another_thread(
    fault: str, message: str, pocket: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda new: setattr(checker, "current", new))
    if fault == "not waited for":
        monkeypatch.setattr("tests.engine.stream_checker.ClockedStream.synchronize", lambda _stream: None)
    feature = FEATURES["new seeds"]
    with checker:
        cuda_streams.enter_main()
        with side_stream(CUDA) as hand_over:
            side = checker.current
            stream = Stream(pocket, 64, 64, cuda_streams=cuda_streams)
            for tick in ticks(stream, feature, 3):
                tick()
            if fault != "not handed over":
                hand_over(stream)
        assert checker.current.name == "loop"
        for tick in ticks(stream, feature, 4):
            tick()
            with checker.on(side):
                torch.zeros(1, device="meta")  # another loader, which takes what was freed
    stream.close()
    assert any(message in line for line in checker.faults) == bool(message), checker.faults[:3]


def test_the_loop_has_a_stream_of_its_own_with_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = StreamChecker()
    cuda_streams = checker.install(monkeypatch)
    priorities: list[int] = []
    entered: list[object] = []
    stand_in: Callable[..., object] = torch.cuda.Stream
    monkeypatch.setattr(
        torch.cuda, "Stream", lambda device, priority=0: priorities.append(priority) or stand_in(device)
    )
    monkeypatch.setattr(torch.cuda, "set_stream", entered.append)
    cuda_streams.enter_main()
    cuda_streams.enter_main()
    assert priorities == [-1]
    assert len(entered) == 2
    assert entered[0] is entered[1]
