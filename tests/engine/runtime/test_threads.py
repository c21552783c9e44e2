"""Thread limits: background threads leave the frame loop its cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.adapters.async_loader import AsyncLoader
from engine.compile.accelerator import Accelerator
from engine.compile.dispatch import CompiledModule
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.stream import Stream
from engine.models import Condition, load
from engine.runtime.threads import limit_to_one_thread, on_one_thread
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.reload import ModelReloader, make_stream, reload_values
from tests.waiting import until

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Let the frame loop compute on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_limit_of_one_thread_does_not_change_others() -> None:
    counts: list[int] = []

    def background() -> None:
        limit_to_one_thread()
        counts.append(torch.get_num_threads())

    thread = threading.Thread(target=background)
    thread.start()
    thread.join()
    assert counts == [1]
    assert torch.get_num_threads() == 2


def test_a_prompt_is_encoded_on_one_thread() -> None:
    counts: dict[str, int] = {}

    def encode(text: str) -> Condition:
        counts[text] = torch.get_num_threads()
        return Condition(torch.zeros(1, 2, 3), None, None)

    conditioner = Conditioner(encode)
    conditioner.update(Snapshot({"/prompt": "first"}).looks)
    conditioner.update(Snapshot({"/prompt": "second"}).looks)
    until(lambda: "second" in counts)
    conditioner.close()
    assert counts == {"first": 2, "": 2, "second": 1}
    assert torch.get_num_threads() == 2


def test_an_adapter_is_loaded_on_one_thread() -> None:
    loader = AsyncLoader[str, int](lambda _request, _report: torch.get_num_threads(), "", blocking=True)
    assert loader.poll("request") == 1
    loader.close()
    assert torch.get_num_threads() == 2


def test_a_component_is_compiled_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(Accelerator, "_load_or_build", lambda *_: counts.append(torch.get_num_threads()))
    accelerator = Accelerator("compile", CPU, tmp_path)
    accelerator.enabled = True
    component = CompiledModule("denoiser", torch.nn.Identity())
    component(torch.zeros(1, 2))
    accelerator.compile_all(lambda: [component])
    accelerator.close()
    assert counts == [1]
    assert torch.get_num_threads() == 2


def test_a_model_is_loaded_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(device="cpu")
    snapshot = Snapshot({"/size": "64x64", "/dtype": "float32"})
    running = make_stream(snapshot, CPU, options)
    running.step([Frame(np.zeros((64, 64, 4), np.uint8))])
    counts: list[int] = []
    monkeypatch.setattr("engine.worker.reload.make_stream", lambda *_, **__: counts.append(torch.get_num_threads()))
    reloader = ModelReloader(CPU, options)
    request = Snapshot({"/size": "128x128", "/dtype": "float32"})
    assert reloader.poll(running, reload_values(snapshot), request) is None
    until(lambda: counts)
    running.close()
    assert counts == [1]
    assert torch.get_num_threads() == 2


def test_small_operations_run_on_one_thread_and_the_number_comes_back() -> None:
    picture = torch.rand(1, 3, 256, 256)
    expected = (picture - 0.5).abs().mean(1)
    with on_one_thread():
        assert torch.get_num_threads() == 1
        assert torch.equal((picture - 0.5).abs().mean(1), expected)
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="inside"), on_one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


def test_a_skipped_frame_costs_less_than_a_tenth_of_a_frame() -> None:
    stream = Stream(load("pocket", CPU, torch.float32), 256, 256, blocking=True)
    stream.apply(Snapshot({"/steps": 1, "/similarity": True, "/similarity/max_skip": 1000}))
    frame = Frame(np.full((256, 256, 4), 100, np.uint8))

    def measure_cpu(ticks: int) -> float:
        """Return the processor time of a tick and the pause after it, in seconds: the workers sleep and wake again."""
        start = time.process_time()
        for _ in range(ticks):
            stream.step([frame])
            time.sleep(0.02)
        return (time.process_time() - start) / ticks

    stream.step([frame])
    stream.step([frame])
    skipped = measure_cpu(20)
    assert stream.stats.skipped >= 20
    stream.apply(Snapshot({"/steps": 1, "/similarity": False}))
    assert skipped < 0.1 * measure_cpu(10)
    stream.adapters.close()
    stream.close()
