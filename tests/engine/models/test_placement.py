"""Placement of a loaded module: layer by layer, so that a running stream ticks in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from engine.models import ModelError
from engine.models.placement import check_finite, place


class Tied(nn.Module):
    """Layers, two that share a weight, and a weight of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 5), nn.ReLU()))
        self.first, self.second = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(("chunk", "holds"), [(1, 5), (200, 3), (1 << 20, 1)])
def test_the_lock_is_released_between_layers(chunk: int, holds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def record(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr("engine.models.placement.device_lock", record)
    monkeypatch.setattr("engine.runtime.device_lock.CHUNK_BYTES", chunk)
    module, meta = Tied(), torch.device("meta")
    assert place(module, meta) is module
    assert {tensor.device for tensor in module.parameters()} == {meta}
    assert entered == [meta] * holds


def test_a_placed_module_is_frozen_keeps_shared_weights_and_takes_the_layout() -> None:
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    place(module, torch.device("cpu"), torch.channels_last)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.second.weight is module.first.weight
    assert module.layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_damaged_weight_is_named() -> None:
    module = Tied()
    check_finite(module, "model 'x': unet")
    with torch.no_grad():
        module.scale[0] = float("inf")
    with pytest.raises(ModelError, match="model 'x': unet holds NaN or infinity in scale"):
        check_finite(module, "model 'x': unet")
