"""The frame loop when frames fail: reported once, mitigated where that is possible, given up where not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from engine.runtime.cuda_streams import NotFinite, PendingOutput
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.messages import EngineError, EngineStatus, FromEngine, Note, Ready, Received, Reverted, Stop
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.failures import MAX_FAILURES, MITIGATE_AFTER, EngineFailure, is_device_lost, is_out_of_memory
from engine.worker.loop import Worker
from tests.waiting import until

SMALL = {"/size": "64x64", "/steps": 1}
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
T = TypeVar("T")


@dataclass
class Bridge:
    """The bridge's end of the worker's pipe."""

    pipe: Connection
    messages: list[FromEngine] = field(default_factory=list)

    def messages_of(self, kind: type[T]) -> list[T]:
        """All messages of one kind so far."""
        while self.pipe.poll():
            self.messages.append(self.pipe.recv())
        return [message for message in self.messages if isinstance(message, kind)]

    def send(self, *snapshots: Snapshot) -> None:
        """Send snapshots, and wait until the worker's thread has received them."""
        before = len(self.messages_of(Received))
        for snapshot in snapshots:
            self.pipe.send(snapshot)
        until(lambda: len(self.messages_of(Received)) == before + len(snapshots), 5, "acknowledgement")

    def errors(self) -> list[str]:
        return [message.text for message in self.messages_of(EngineError)]


@pytest.fixture
def engine() -> Iterator[tuple[Worker, Bridge]]:
    context = multiprocessing.get_context("spawn")
    boxes = Mailboxes(*(Mailbox(context, 64) for _ in range(3)))
    bridge_pipe, engine_pipe = context.Pipe()
    yield Worker(engine_pipe, boxes, EngineOptions("cpu"), Snapshot(SMALL)), Bridge(bridge_pipe)
    for box in boxes:
        box.close()


def tick(worker: Worker, count: int = 1) -> None:
    for _ in range(count):
        worker._tick([Frame(np.full((64, 64, 4), 90, np.uint8))])


def failing(error: Exception) -> Any:
    def begin(_frames: object) -> None:
        raise error

    return begin


def test_the_first_message_says_what_runs(engine: tuple[Worker, Bridge]) -> None:
    _, bridge = engine
    [ready] = bridge.messages_of(Ready)
    assert (ready.status.model, ready.status.size, ready.status.device) == ("pocket", "64x64", "cpu")
    assert ready.status.running["/size"] == "64x64"


def test_a_failed_frame_is_reported_once_and_the_next_one_is_published(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    tick(worker)
    monkeypatch.setattr(worker.stream, "begin", failing(ValueError("no such kernel\nand much more")))
    tick(worker, MAX_FAILURES - 1)
    assert bridge.errors() == ["a frame failed: no such kernel"]
    monkeypatch.undo()
    tick(worker)
    assert worker.outbox.read() is not None
    assert bridge.messages_of(Note) == [Note(f"recovered after {MAX_FAILURES - 1} failed frames")]
    assert worker.failures == 0


def test_too_many_failures_in_a_row_end_the_process(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = engine
    monkeypatch.setattr(worker.stream, "begin", failing(RuntimeError("broken")))
    tick(worker, MAX_FAILURES - 1)
    with pytest.raises(EngineFailure, match="broken"):
        tick(worker)


def test_a_lost_device_ends_the_process_at_once(engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch) -> None:
    worker, bridge = engine
    monkeypatch.setattr(worker.stream, "begin", failing(RuntimeError("CUDA error: unspecified launch failure")))
    with pytest.raises(EngineFailure):
        tick(worker)
    assert len(bridge.errors()) == 1


def test_values_that_do_not_fit_into_memory_are_reverted(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    tick(worker)
    worker.snapshot = Snapshot({**SMALL, "/steps": 4}, 2)
    monkeypatch.setattr(worker.stream, "begin", failing(OUT_OF_MEMORY))
    tick(worker, MITIGATE_AFTER)
    [message] = bridge.messages_of(Reverted)
    assert "out of memory" in message.reason
    assert (message.running["/steps"], message.rejected["/steps"]) == (1, 4)


def test_values_with_which_frames_fail_are_reverted(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    tick(worker)
    worker.snapshot = Snapshot({**SMALL, "/steps": 4}, 2)
    monkeypatch.setattr(worker.stream, "begin", failing(RuntimeError("no such kernel")))
    tick(worker, MITIGATE_AFTER)
    [message] = bridge.messages_of(Reverted)
    assert message.reason == "frames fail (no such kernel): back to the last values that worked"
    assert (message.running["/steps"], message.rejected["/steps"]) == (1, 4)


def test_an_autoencoder_that_overflows_is_switched_to_float32(engine: tuple[Worker, Bridge]) -> None:
    """A decoder that overflows in its own precision, as many autoencoders do in float16."""
    worker, bridge = engine
    model = worker.stream.model
    model.autoencoder.to(torch.float16)
    first = next(layer for layer in model.autoencoder.decoder.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(30_000.0)
    with pytest.raises(NotFinite):
        worker.stream.step([Frame(np.full((64, 64, 4), 90, np.uint8))])
    tick(worker, MITIGATE_AFTER)
    assert [text for text in bridge.errors() if "float32" in text]
    assert model.autoencoder.dtype == torch.float32
    tick(worker)
    assert worker.outbox.read() is not None
    assert not model.upcast_to_float32(), "it is in float32 already"


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
def test_errors_are_classified_by_their_cause(error: Exception, memory: bool, device: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (memory, device)


def test_a_pending_frame_is_published_after_the_next_tick_has_begun_or_without_one(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = engine
    monkeypatch.setattr(PendingOutput, "done", lambda _output: False)
    sent: list[int] = []
    monkeypatch.setattr(worker.outbox, "write", lambda frame: sent.append(frame.sequence))
    for sequence in range(3):
        worker._tick([Frame(np.full((64, 64, 4), 90, np.uint8), sequence)])
    assert sent == [0, 1]
    answers = iter([True, False])
    monkeypatch.setattr(worker, "_follow_snapshot", lambda: next(answers))
    worker.loop()
    assert sent == [0, 1, 2]
    assert worker.pending is None


def test_only_the_newest_snapshot_is_followed_and_stop_ends_the_loop(engine: tuple[Worker, Bridge]) -> None:
    worker, bridge = engine
    bridge.send(*(Snapshot({**SMALL, "/strength": number / 10}, number) for number in (2, 3, 4)))
    assert worker._follow_snapshot()
    assert worker.stream.snapshot.number == 4
    assert worker.status().snapshot == 4
    bridge.pipe.send(Stop())
    worker.loop()
    worker.bridge.send(worker.status())
    assert isinstance(bridge.messages_of(EngineStatus)[-1], EngineStatus)


def test_a_snapshot_is_acknowledged_during_a_tick_and_the_newest_is_followed_after_it(
    engine: tuple[Worker, Bridge],
) -> None:
    worker, bridge = engine
    for number in (2, 3):  # no call of the worker between them: each is acknowledged all the same
        bridge.send(Snapshot({**SMALL, "/strength": number / 10}, number))
    assert [message.number for message in bridge.messages_of(Received)] == [2, 3]
    assert worker._follow_snapshot()
    assert worker.stream.snapshot.number == 3
    bridge.pipe.close()
    with pytest.raises((EOFError, OSError)):
        worker.loop()


def test_a_schedule_that_does_not_suit_the_model_is_reported(engine: tuple[Worker, Bridge]) -> None:
    worker, bridge = engine
    bridge.send(Snapshot({**SMALL, "/schedule": "1000 500"}, 2))
    assert worker._follow_snapshot()
    [text] = bridge.errors()
    assert text.startswith("/schedule goes to 1000")
