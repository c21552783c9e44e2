"""Builds for a GPU, with faked answers: remembered when they fail, never begun without memory, run on one thread."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from engine.compile import Accelerator, environment
from engine.compile.artifact import AotiPackage
from engine.compile.builder_process import BuilderDied
from engine.compile.dispatch import CompiledModule, RowCounts
from engine.compile.refusals import EXPIRY_DAYS, Refusals
from tests.engine.compile.fake_graphs import FakeGraphs, Scale

CUDA = torch.device("cuda", 1)
GIB = 1 << 30


class Card:
    """A card with ``free`` bytes and a driver; the builder process of an accelerator answers with ``answer``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.free, self.driver, self.builds = 24 * GIB, 13000, 0
        self.answer: Exception | None = None
        self._folder = folder
        monkeypatch.setattr("engine.compile.accelerator.missing_requirement", lambda *_: "")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (self.free, 24 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "GeForce RTX 4090")
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: self.driver, raising=False)
        monkeypatch.setattr(environment, "toolkit_environment", lambda _device: {})
        monkeypatch.setattr("engine.compile.builder.make_recipe", lambda *_: {"component": "denoiser", "tensors": []})
        monkeypatch.setattr(Accelerator, "_build", self._build)

    def start(self) -> tuple[CompiledModule, list[str]]:
        """Start an engine on the card, which asks for one component, and return what became of it."""
        one = CompiledModule("denoiser", Scale())
        one(torch.randn(2, 2), torch.randn(2))
        accelerator = Accelerator("compile", CUDA, self._folder)
        accelerator._device = CUDA
        signature = one.called
        assert signature is not None
        accelerator._install_backend(one, signature, RowCounts())
        return one, accelerator.notes

    def _build(self, _recipe: dict[str, Any], _path: Path) -> None:
        self.builds += 1
        if self.answer is not None:
            raise self.answer


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    return Card(monkeypatch, tmp_path / "compiled")


def test_a_failed_build_is_not_tried_at_each_start(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card.answer = RuntimeError("CUDA_HOME environment variable is not set")
    one, [first] = card.start()
    assert first == "the denoiser runs uncompiled: CUDA_HOME environment variable is not set"
    assert one.rejected
    [again] = card.start()[1]
    assert again.startswith(first)
    assert "to try again" in again
    assert card.builds == 1
    card.driver = 13010
    card.start()
    assert card.builds == 2, "another driver may do better"
    monkeypatch.setattr(torch, "__version__", "2.99.0+cu140")
    card.start()
    assert card.builds == 3, "so may another torch"
    now = time.time()
    monkeypatch.setattr("engine.compile.refusals.time.time", lambda: now + (EXPIRY_DAYS + 1) * 86400)
    card.start()
    assert card.builds == 4, "and after some days it is tried again in any case"


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")], ids=str)
def test_what_may_pass_is_not_remembered(error: Exception, card: Card) -> None:
    card.answer = error
    card.start()
    card.start()
    assert card.builds == 2


def test_a_builder_that_dies_is_remembered_too(card: Card) -> None:
    card.answer = BuilderDied()
    card.start()
    [note] = card.start()[1]
    assert "the builder process died" in note
    assert card.builds == 1


def test_no_build_begins_without_the_memory_for_a_second_process(card: Card) -> None:
    card.free = GIB
    one, [note] = card.start()
    assert note == "the denoiser runs uncompiled: compiling it needs 1.5 GiB, 1.0 are free on cuda:1"
    assert not one.rejected, "memory may become free"
    assert not card.builds
    weights = torch.nn.Linear(1 << 15, 1 << 15, device="meta")  # 4 GiB
    card.free = int(6.7 * GIB)
    environment.check_build_memory(weights, torch.device("cpu"))
    with pytest.raises(MemoryError, match=r"needs 6.7 GiB"):
        environment.check_build_memory(weights, CUDA)
    card.free = int(6.8 * GIB)
    environment.check_build_memory(weights, CUDA)


def test_a_damaged_or_unwritable_memory_of_refusals_forbids_nothing(tmp_path: Path) -> None:
    refusals = Refusals(tmp_path / "new")
    assert refusals.reason("key") == ""
    refusals.remember("key", "no kernel image")
    assert Refusals(tmp_path / "new").reason("key") == "no kernel image"
    [file] = (tmp_path / "new").iterdir()
    for text in ("", "[]", "{}", '{"reason": "x", "time": "soon"}', json.dumps({"reason": "x", "time": 4e9})):
        file.write_text(text, encoding="utf-8")
        assert refusals.reason("key") == ""
    (tmp_path / "file").touch()
    Refusals(tmp_path / "file").remember("key", "no kernel image")


class Loader:
    """AOTInductor's loader as it is called: its arguments, and a run that no two threads may enter at once."""

    calls: list[tuple[Any, ...]]

    def __init__(self, *arguments: Any) -> None:
        Loader.calls.append(arguments)
        self.busy = 0
        self.overlapped = False

    def get_constant_fqns(self) -> list[str]:
        return []

    def load_constants(self, *_: Any) -> None:
        pass

    def boxed_run(self, inputs: list[Any]) -> list[Any]:
        self.busy += 1
        self.overlapped |= self.busy > 1
        time.sleep(2e-3)
        self.busy -= 1
        return inputs


@pytest.mark.parametrize(("index", "expected"), [(1, (True, 1, 1)), (None, (True, 1, 2)), (-1, (False, 1, -1))])
def test_a_package_on_a_gpu_runs_single_threaded_on_its_device(
    index: int | None, expected: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    module = ModuleType("torch._C._aoti")
    module.AOTIModelPackageLoader = Loader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._C._aoti", module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(Loader, "calls", [], raising=False)
    device = torch.device("cpu") if index == -1 else torch.device("cuda", index) if index is not None else "cuda"
    parameter = SimpleNamespace(device=torch.device(device))
    component: Any = SimpleNamespace(module=SimpleNamespace(parameters=lambda: iter([parameter])), version=0)
    package = AotiPackage(tmp_path / "model.pt2", {}, component, {})
    [(path, name, *rest)] = Loader.calls
    assert (path, name) == (str(tmp_path / "model.pt2"), "model")
    assert tuple(rest) == expected
    threads = [threading.Thread(target=package, args=([],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert package._loader.overlapped is not expected[0], "one thread at a time where it does not synchronise itself"


def test_graphs_serve_while_the_memory_for_a_build_is_missing(card: Card, tmp_path: Path) -> None:
    card.free = GIB
    one = CompiledModule("denoiser", Scale())
    one(torch.randn(2, 2), torch.randn(2))
    accelerator = Accelerator("auto", torch.device("cpu"), tmp_path, FakeGraphs())
    accelerator._load_or_build = lambda *_: environment.check_build_memory(one.module, CUDA)  # type: ignore[method-assign]
    accelerator.compile_all(lambda: [one])
    assert accelerator.state == "graphs"
    assert sum("compiling it needs" in note for note in accelerator.notes) == 1
