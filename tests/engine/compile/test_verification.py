"""Verification of a backend while the weights move, or while memory is short: tried again, never refused for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.adapters.lora import MergedLoras
from engine.adapters.lora_file import LowRankUpdate
from engine.compile import Accelerator
from engine.compile.accelerator import CHANGED_RETRY_SECONDS, MAX_COMPARISONS, MEMORY_RETRY_SECONDS
from engine.compile.dispatch import Backend, CompiledModule

CPU = torch.device("cpu")


class Bench:
    """A linear layer with one signature requested, and an accelerator whose builds are what ``call`` does."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        monkeypatch.setattr("engine.compile.accelerator.missing_requirement", lambda *_: "")
        self.now, self.loads = 1000.0, 0
        monkeypatch.setattr("engine.compile.accelerator.time.perf_counter", lambda: self.now)
        self.component = CompiledModule("decoder", nn.Linear(8, 8).requires_grad_(False))
        self.accelerator = Accelerator("compile", CPU, tmp_path)
        self.call: Callable[[Sequence[Tensor]], Any] = self.run
        monkeypatch.setattr(self.accelerator, "_load_or_build", self._load)

    def _load(self, *_: object) -> Backend:
        self.loads += 1
        return Backend(lambda tensors: self.call(tensors))

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return what the module does."""
        result: Tensor = self.component.module(*tensors)
        return result

    def change_weights(self) -> None:
        """Move a fader of a LoRA: the weights change, then the version."""
        self.component.module.weight.mul_(1.5)
        self.component.mark_weights_changed()

    def attempt(self) -> None:
        """Let the layer be called, and the accelerator work until it has nothing to do."""
        self.component(torch.ones(2, 8))
        self.accelerator.compile_all(lambda: [self.component])

    @property
    def is_served(self) -> bool:
        """Whether calls run on the backend."""
        return bool(self.component.backends)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_weights_that_move_once_during_the_comparison_are_compared_again(bench: Bench) -> None:
    moves = [1]

    def call(tensors: Sequence[Tensor]) -> Tensor:
        if moves:
            moves.pop()
            bench.change_weights()
        return bench.run(tensors)

    bench.call = call
    bench.attempt()
    assert bench.is_served
    assert (bench.loads, bench.component.rejected) == (1, set())


def test_weights_that_never_rest_are_compared_again_later(bench: Bench) -> None:
    calls = []

    def call(tensors: Sequence[Tensor]) -> Tensor:
        calls.append(1)
        bench.change_weights()
        return bench.run(tensors)

    bench.call = call
    bench.attempt()
    bench.attempt()
    assert (len(calls), bench.loads) == (MAX_COMPARISONS, 1), "not again at once: it takes a core"
    assert (bench.is_served, bench.component.rejected, bench.accelerator.notes) == (False, set(), [])
    bench.now += CHANGED_RETRY_SECONDS
    bench.call = bench.run
    bench.attempt()
    assert bench.is_served
    assert bench.accelerator.state == "compiled"


def test_a_wrong_backend_is_refused_at_the_first_comparison_in_peace(bench: Bench) -> None:
    bench.call = lambda tensors: 2 * bench.run(tensors)
    bench.attempt()
    assert len(bench.component.rejected) == 1
    assert "output error" in bench.accelerator.notes[0]
    bench.now += 1000
    bench.attempt()
    assert bench.loads == 1


def test_a_copy_of_older_weights_is_no_reason_to_refuse(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old = bench.component.module.weight.clone(), bench.component.module.bias.clone()

    def load(*_: object) -> Backend:
        version = bench.component.version
        bench.change_weights()
        return Backend(lambda tensors: nn.functional.linear(tensors[0], *old), version=version)

    monkeypatch.setattr(bench.accelerator, "_load_or_build", load)
    bench.attempt()
    assert (bench.is_served, bench.component.rejected) == (False, set())


def test_a_shortage_of_memory_is_remembered_for_a_minute(bench: Bench) -> None:
    def call(_tensors: Sequence[Tensor]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    bench.call = call
    for _ in range(3):
        bench.attempt()
    assert (bench.loads, bench.component.rejected) == (1, set())
    bench.now += MEMORY_RETRY_SECONDS
    bench.attempt()
    assert bench.loads == 2
    assert len([note for note in bench.accelerator.notes if "out of memory" in note]) == 1, "one line, not one a minute"
    bench.now += MEMORY_RETRY_SECONDS
    bench.call = bench.run
    bench.attempt()
    assert bench.is_served


def test_a_backend_for_weights_of_another_type_is_not_installed(bench: Bench) -> None:
    """The autoencoder was widened while its backend was built: the module agrees, but the backend would overflow."""

    bench.component.module.half()

    def call(tensors: Sequence[Tensor]) -> Tensor:
        result = bench.run(tensors)
        bench.component.module.bfloat16()
        return result

    bench.call = call
    bench.component(torch.ones(2, 8, dtype=torch.float16))
    bench.accelerator.compile_all(lambda: [bench.component])
    assert (bench.is_served, bench.component.rejected) == (False, set())


def test_other_threads_can_tell_that_loras_are_being_merged() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    seen: list[Tensor] = []
    loras = MergedLoras({"unet": nn.Sequential(layer)}, lambda: seen.append(layer.weight.clone()))
    loras.install([{("unet", "0"): LowRankUpdate(torch.ones(1, 4), torch.ones(4, 1))}])
    for change in (lambda: loras.set_weights([0.5]), lambda: loras.install([])):
        before = layer.weight.clone()
        seen.clear()
        change()
        assert [torch.equal(weight, before) for weight in seen] == [True, False]
        assert torch.equal(seen[-1], layer.weight)
