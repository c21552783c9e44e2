"""What computes beside the frame loop leaves it its cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.adapters.async_loader import AsyncLoader
from engine.compile.accelerator import Accelerator
from engine.compile.dispatch import CompiledModule
from engine.diffusion.conditioning import Conditioner
from engine.models import Condition
from engine.runtime.threads import limit_to_one_thread
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.reload import ModelReloader, make_stream, reload_values
from tests.waiting import until

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """The frame loop computes on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_thread_that_steps_aside_does_not_move_others() -> None:
    seen: list[int] = []

    def beside() -> None:
        limit_to_one_thread()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_a_prompt_is_encoded_on_one_thread() -> None:
    seen: dict[str, int] = {}

    def encode(text: str) -> Condition:
        seen[text] = torch.get_num_threads()
        return Condition(torch.zeros(1, 2, 3), None, None)

    conditioner = Conditioner(encode)
    conditioner.update(Snapshot({"/prompt": "first"}), wait=True)
    conditioner.update(Snapshot({"/prompt": "second"}))
    until(lambda: "second" in seen)
    conditioner.close()
    assert seen == {"first": 2, "": 2, "second": 1}
    assert torch.get_num_threads() == 2


def test_an_adapter_is_made_on_one_thread() -> None:
    background = AsyncLoader[str, int](lambda _wish: torch.get_num_threads(), "")
    assert background.poll("wish", wait=True) == 1
    background.close()
    assert torch.get_num_threads() == 2


def test_a_part_is_built_and_checked_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Accelerator, "_found", lambda *_: seen.append(torch.get_num_threads()))
    accelerator = Accelerator("compile", CPU, tmp_path)
    accelerator.enabled = True
    part = CompiledModule("denoiser", torch.nn.Identity())
    part(torch.zeros(1, 2))
    accelerator.compile_all(lambda: [part])
    accelerator.close()
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_a_model_is_loaded_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(device="cpu")
    snapshot = Snapshot({"/size": "64x64", "/dtype": "float32"})
    running = make_stream(snapshot, CPU, options)
    running.step([Frame(np.zeros((64, 64, 4), np.uint8))])
    seen: list[int] = []
    monkeypatch.setattr("engine.worker.reload.make_stream", lambda *_, **__: seen.append(torch.get_num_threads()))
    reloader = ModelReloader(CPU, options)
    wish = Snapshot({"/size": "128x128", "/dtype": "float32"})
    assert reloader.poll(running, reload_values(snapshot), wish) is None
    until(lambda: seen)
    running.close()
    assert seen == [1]
    assert torch.get_num_threads() == 2
