"""``--device cuda:1``: every thread and process that computes on it makes it the current one first."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adapters.async_loader import AsyncLoader
from engine.bench import diffusers_baseline
from engine.compile import Accelerator, builder
from engine.compile.dispatch import CompiledModule
from engine.diffusion.prompt_encoder import EncodingRequest, PromptEncoder
from engine.image.hooks import Hooks
from engine.models import Condition
from engine.runtime.device import enter_background_thread, inherit_device, synchronize, use_device
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker import loop, offline
from engine.worker.reload import ModelReloader
from tests.engine.compile.fake_graphs import FakeGraphs, Scale
from tests.waiting import until

SECOND = torch.device("cuda", 1)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Thread → its current CUDA device, as ``torch.cuda`` is called. The present thread is on the second one."""
    current = {threading.current_thread().name: 1}

    def name() -> str:
        return threading.current_thread().name

    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: current.update({name(): getattr(device, "index", device)})
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current.get(name(), 0))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return current


def test_only_a_numbered_device_of_cuda_is_set(devices: dict[str, int]) -> None:
    devices.clear()
    for device in ("cpu", "cuda", "mps"):
        use_device(torch.device(device))
    assert not devices
    use_device(SECOND)
    assert devices == {"MainThread": 1}


def test_background_threads_are_on_the_device_of_the_engine(devices: dict[str, int], tmp_path: Path) -> None:
    loader = AsyncLoader[str, int](lambda *_: 1, "", blocking=True)
    loader.poll("request")
    loader.close()
    assert devices.pop("adapters_0") == 1
    encoder = PromptEncoder(lambda _text: Condition(torch.zeros(1, 1, 1)))
    encoder.encode_later((EncodingRequest("text", False, ()),))
    until(lambda: "prompts" in devices)
    encoder.close()
    hooks = Hooks(tmp_path)
    until(lambda: "hooks" in devices)
    hooks.close()
    accelerator, one = Accelerator("graphs", SECOND, tmp_path, FakeGraphs()), CompiledModule("denoiser", Scale())
    one(torch.zeros(1, 2), torch.zeros(1))
    accelerator.poll([one])
    until(lambda: "accelerate" in devices)
    accelerator.close()
    assert devices == {"MainThread": 1, "prompts": 1, "hooks": 1, "accelerate": 1}


def test_the_thread_that_loads_models_is_on_the_device(
    devices: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.worker.reload.make_stream", lambda *_, **__: None)
    running: Any = type("Running", (), {"hooks": None})()
    ModelReloader(SECOND, EngineOptions()).poll(running, {}, Snapshot())
    until(lambda: "reload" in devices)
    assert devices["reload"] == 1


class Chosen(Exception):
    """The device was used."""


def test_each_process_is_on_the_device_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []

    def use(device: torch.device) -> None:
        used.append(device)
        raise Chosen

    for module in (loop, offline, builder, diffusers_baseline):
        monkeypatch.setattr(module, "use_device", use)
    for module in (loop, offline):
        monkeypatch.setattr(module, "pick_device", lambda _name: SECOND)
    boxes: Any = [type("Box", (), {"skip": lambda _self: None})()] * 3
    pipe: Any = None
    with pytest.raises(Chosen):
        loop.Worker(pipe, boxes, EngineOptions("cuda:1"), Snapshot())
    with pytest.raises(Chosen):
        offline.render([], Snapshot(), EngineOptions("cuda:1"))
    with pytest.raises(Chosen):
        builder.build({"device": "cuda:1"}, Path())
    with pytest.raises(Chosen):
        diffusers_baseline._serve(pipe, "pocket", (), "cuda:1", EngineOptions(), "", 1)
    assert used == [SECOND] * 4


def test_without_cuda_a_thread_sets_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: pytest.fail("no CUDA here"))
    threads = torch.get_num_threads()
    inherit_device()()
    enter_background_thread(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def test_a_timing_waits_for_every_kind_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronize(torch.device(name))
    assert waited == ["cuda:1", "mps"]
