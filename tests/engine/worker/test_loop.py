"""What the frame loop does when frames fail: told once, mended where it can be, given up where not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from engine.runtime.cuda_streams import NotFinite, PendingOutput
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.loop import FAILURES, SEVERAL, Failed, Worker
from engine.worker.reload import is_device_lost, is_out_of_memory

SMALL = {"/size": "64x64", "/steps": 1}
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Pipe:
    """Keeps what the worker says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def send(self, message: tuple[str, Any]) -> None:
        self.said.append(message)

    def poll(self) -> bool:
        return False

    def of(self, kind: str) -> list[Any]:
        return [payload for said, payload in self.said if said == kind]


@pytest.fixture
def worker() -> Iterator[tuple[Worker, Pipe]]:
    context, pipe = multiprocessing.get_context("spawn"), Pipe()
    boxes = Mailboxes(*(Mailbox(context, 64) for _ in range(3)))
    yield Worker(pipe, boxes, EngineOptions("cpu"), Snapshot(SMALL)), pipe  # type: ignore[arg-type]
    for box in boxes:
        box.close()


def ticks(worker: Worker, count: int = 1) -> None:
    for _ in range(count):
        worker._tick([Frame(np.full((64, 64, 4), 90, np.uint8))])


def failing(error: Exception) -> Any:
    def step(_frames: object) -> None:
        raise error

    return step


def test_a_failed_frame_is_told_once_and_the_next_goes_on(
    worker: tuple[Worker, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, pipe = worker
    ticks(loop)
    monkeypatch.setattr(loop.stream, "begin", failing(ValueError("no such kernel\nand much more")))
    ticks(loop, FAILURES - 1)
    assert pipe.of("error") == ["a frame failed: no such kernel"]
    monkeypatch.undo()
    ticks(loop)
    assert loop.outbox.read() is not None
    assert pipe.of("note") == [f"frames come again, after {FAILURES - 1} that failed"]
    assert loop.failures == 0


def test_too_many_in_a_row_are_given_up(worker: tuple[Worker, Pipe], monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = worker
    monkeypatch.setattr(loop.stream, "begin", failing(RuntimeError("broken")))
    ticks(loop, FAILURES - 1)
    with pytest.raises(Failed, match="broken"):
        ticks(loop)


def test_a_lost_device_is_given_up_at_once(worker: tuple[Worker, Pipe], monkeypatch: pytest.MonkeyPatch) -> None:
    loop, pipe = worker
    monkeypatch.setattr(loop.stream, "begin", failing(RuntimeError("CUDA error: unspecified launch failure")))
    with pytest.raises(Failed):
        ticks(loop)
    assert len(pipe.of("error")) == 1


def test_what_no_longer_fits_is_taken_back(worker: tuple[Worker, Pipe], monkeypatch: pytest.MonkeyPatch) -> None:
    loop, pipe = worker
    ticks(loop)
    loop.snapshot = Snapshot({**SMALL, "/steps": 4}, 2)
    monkeypatch.setattr(loop.stream, "begin", failing(OUT_OF_MEMORY))
    ticks(loop, SEVERAL)
    [(reason, good, wished)] = pipe.of("kept")
    assert "out of memory" in reason
    assert (good["/steps"], wished["/steps"]) == (1, 4)


def test_numbers_that_are_none_are_no_picture_and_half_precision_gives_way(worker: tuple[Worker, Pipe]) -> None:
    """A decoder that overflows in its own precision, as many autoencoders do in float16."""
    loop, pipe = worker
    model = loop.stream.model
    model.autoencoder.to(torch.float16)
    first = next(layer for layer in model.autoencoder.decoder.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(30_000.0)
    with pytest.raises(NotFinite):
        loop.stream.step([Frame(np.full((64, 64, 4), 90, np.uint8))])
    ticks(loop, SEVERAL)
    assert [text for text in pipe.of("error") if "float32" in text]
    assert model.autoencoder.dtype == torch.float32
    ticks(loop)
    assert loop.outbox.read() is not None
    assert not model.upcast_to_float32(), "it cannot be any wider"


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (MemoryError(), True, False),
        (OUT_OF_MEMORY, True, False),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            True,
            False,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("shapes do not match"), False, False),
    ],
)
def test_what_an_error_means(error: Exception, memory: bool, device: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (memory, device)


def test_a_frame_that_is_not_out_yet_is_delivered_after_the_next_has_begun_or_where_none_comes(
    worker: tuple[Worker, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = worker
    monkeypatch.setattr(PendingOutput, "done", lambda _output: False)
    sent: list[int] = []
    monkeypatch.setattr(loop.outbox, "write", lambda frame: sent.append(frame.sequence))
    for sequence in range(3):
        loop._tick([Frame(np.full((64, 64, 4), 90, np.uint8), sequence)])
    assert sent == [0, 1]
    said = iter([True, False])
    monkeypatch.setattr(loop, "_listen", lambda: next(said))
    loop.loop()
    assert sent == [0, 1, 2]
    assert loop.leaving is None
