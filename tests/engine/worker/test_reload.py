"""Reloads: beside the running stream, which survives their failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from engine.diffusion.stream import Stream
from engine.runtime.handover import side_stream
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.reload import ModelReloader, ReloadResult, make_stream, reload_values
from tests.engine.checkpoints import save_sd

CPU = torch.device("cpu")


def wait(reloader: ModelReloader, running: Stream, current: Snapshot, requested: Snapshot) -> ReloadResult:
    limit = time.perf_counter() + 60
    while time.perf_counter() < limit:
        result = reloader.poll(running, reload_values(current), requested)
        if result is not None:
            return result
        time.sleep(0.005)
    raise AssertionError("the reload did not end")


@pytest.fixture(scope="module")
def running() -> Stream:
    return make_stream(Snapshot({"/size": "64x64", "/dtype": "float32"}), CPU, EngineOptions())


def test_another_size_uses_the_same_weights(running: Stream) -> None:
    current, requested = (
        Snapshot({"/size": "64x64", "/dtype": "float32"}),
        Snapshot({"/size": "96x128", "/dtype": "float32"}),
    )
    result = wait(ModelReloader(CPU, EngineOptions()), running, current, requested)
    assert result.stream is not None
    assert (result.stream.width, result.stream.height) == (96, 128)
    assert result.stream.model is running.model
    assert result.stream.slots == [], "the warm-up leaves no frame behind"


def test_another_checkpoint_is_loaded(running: Stream, tmp_path: Path) -> None:
    current = Snapshot({"/size": "64x64", "/dtype": "float32"})
    requested = Snapshot({"/size": "64x64", "/dtype": "float32", "/model": str(save_sd(tmp_path))})
    result = wait(ModelReloader(CPU, EngineOptions()), running, current, requested)
    assert result.stream is not None
    assert result.stream.model.name == str(tmp_path)


def test_a_missing_model_is_rejected_once(running: Stream) -> None:
    current, requested = Snapshot({"/dtype": "float32"}), Snapshot({"/dtype": "float32", "/model": "/no/such"})
    reloader = ModelReloader(CPU, EngineOptions())
    result = wait(reloader, running, current, requested)
    assert result.stream is None
    assert "/no/such" in result.error
    for _ in range(50):
        assert reloader.poll(running, reload_values(current), requested) is None
    assert not reloader.busy, "the same request is not tried again"


def test_running_out_of_memory_is_one_line(running: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 GiB")

    monkeypatch.setattr("engine.worker.reload.load", no_memory)
    result = wait(ModelReloader(CPU, EngineOptions()), running, Snapshot(), Snapshot({"/model": "huge"}))
    assert result.stream is None
    assert result.error.startswith("out of memory")


def test_a_real_shortage_of_memory_is_survived(running: Stream) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 0
    )
    if not used:
        pytest.xfail("the process's size cannot be read here")
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, before[1]))
    try:
        result = wait(
            ModelReloader(CPU, EngineOptions()),
            running,
            Snapshot({"/dtype": "float32"}),
            Snapshot({"/dtype": "float32", "/size": "2048x2048"}),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert result.stream is None
    assert "memory" in result.error
    frames = running.step([])
    assert frames == []


def test_a_size_that_does_not_fit_the_model_is_rejected() -> None:
    with pytest.raises(InvalidValue, match="multiples"):
        make_stream(Snapshot({"/size": "100x64", "/dtype": "float32"}), CPU, EngineOptions())


def test_another_stream_is_prepared_on_the_side_stream_and_handed_over(
    running: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []
    within: list[torch.device] = []

    @contextmanager
    def recorded(device: torch.device) -> Iterator[Callable[[object], object]]:
        within.append(device)
        with side_stream(device) as hand_over:
            yield lambda value: handed.append(value) or hand_over(value)

    monkeypatch.setattr("engine.worker.reload.side_stream", recorded)
    current, requested = (Snapshot({"/size": size, "/dtype": "float32"}) for size in ("64x64", "96x64"))
    result = wait(ModelReloader(CPU, EngineOptions()), running, current, requested)
    assert within == [CPU]
    assert handed == [result.stream]
