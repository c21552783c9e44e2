"""The frame loop when frames fail: reported once, mitigated where that is possible, given up where not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from engine.diffusion.deep_reuse import FOCUS_NOTE
from engine.runtime.cuda_streams import NotFinite, PendingOutput
from engine.runtime.live import SWITCH_SECONDS
from engine.shared.frame import Frame
from engine.shared.messages import EngineStatus, Note, Ready, Received, Reverted, Stop
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.failures import (
    MAX_FAILURES,
    MITIGATE_AFTER,
    EngineFailure,
    free_memory,
    is_device_lost,
    is_out_of_memory,
)
from engine.worker.loop import Worker
from engine.worker.reload import ReloadResult, make_stream, reload_values
from tests.engine.worker.bridge_end import SMALL, Bridge, failing, failing_call, tick

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_first_message_says_what_runs(engine: tuple[Worker, Bridge]) -> None:
    _, bridge = engine
    [ready] = bridge.messages_of(Ready)
    assert (ready.status.model, ready.status.size, ready.status.device) == ("pocket", "64x64", "cpu")
    assert ready.status.running["/size"] == "64x64"


def test_the_process_is_set_up_for_short_ticks(engine: tuple[Worker, Bridge]) -> None:
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)


def test_memory_goes_back_to_the_device_only_where_it_ran_out(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = engine
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (20 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    for error, expected in ((ValueError("no such kernel"), 0), (NotFinite(), 0), (OUT_OF_MEMORY, 1)):
        monkeypatch.setattr(worker.stream, "begin", failing(error))
        tick(worker)
        assert len(emptied) == expected, error


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


@pytest.mark.parametrize("error", [RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED"), OUT_OF_MEMORY])
def test_an_error_while_memory_is_freed_does_not_end_the_process(
    engine: tuple[Worker, Bridge], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    monkeypatch.setattr("engine.worker.loop.free_memory", failing_call(error))
    new = make_stream(Snapshot(SMALL), torch.device("cpu"), EngineOptions("cpu"))
    results = iter([ReloadResult(reload_values(Snapshot(SMALL)), 0.1, new)])
    monkeypatch.setattr(worker.reloader, "poll", lambda *_: next(results, None))
    answers = iter([True, True, False])
    monkeypatch.setattr(worker, "_follow_snapshot", lambda: next(answers))
    monkeypatch.setattr(worker, "_take_frame", lambda: worker.waiting.append(Frame(np.zeros((64, 64, 4), np.uint8))))
    worker.loop()
    assert worker.stream is new
    worker._end_crossfade()
    monkeypatch.setattr(worker.stream, "begin", failing(ValueError("no such kernel")))
    tick(worker)
    assert bridge.errors() == ["a frame failed: no such kernel"]


def test_an_error_while_a_stream_is_swapped_in_is_a_failed_frame(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    monkeypatch.setattr(worker.reloader, "poll", failing_call(RuntimeError("no such stream")))
    answers = iter([True, False])
    monkeypatch.setattr(worker, "_follow_snapshot", lambda: next(answers))
    worker.loop()
    assert bridge.errors() == ["a frame failed: no such stream"]
    monkeypatch.setattr(worker.reloader, "poll", failing_call(EngineFailure("the device is lost")))
    answers = iter([True, False])
    with pytest.raises(EngineFailure, match="the device is lost"):
        worker.loop()


def test_a_failure_of_torch_to_free_memory_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", failing_call(RuntimeError("INTERNAL ASSERT FAILED")))
    free_memory()
    assert "INTERNAL ASSERT FAILED" in caplog.text


def test_new_shapes_are_reported_as_loading_on_rocm(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    tick(worker)
    assert bridge.messages_of(EngineStatus) == [], "other devices take any shape at once"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    tick(worker, 2)
    assert [status.loading for status in bridge.messages_of(EngineStatus)] == [True]
    worker._apply(Snapshot({**SMALL, "/steps": 2}, 2))
    tick(worker, 5)
    assert [status.loading for status in bridge.messages_of(EngineStatus)] == [True] * 2, "one more row in flight"


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


def test_a_mode_of_the_regions_without_effect_is_a_line_in_the_log_once(engine: tuple[Worker, Bridge]) -> None:
    worker, bridge = engine
    for number in (2, 3):
        bridge.send(Snapshot({**SMALL, "/regions": "focus", "/strength": number / 10}, number))
        assert worker._follow_snapshot()
        worker._report()
    assert [note.text for note in bridge.messages_of(Note)] == [FOCUS_NOTE]
