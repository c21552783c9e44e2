"""Memory of a device, with a stand-in for the driver: the allocator's cache goes back only where it is needed."""

from __future__ import annotations

from math import inf

import pytest
import torch

from engine.runtime.device_memory import RESERVE_BYTES, free_memory_bytes, is_short, release_cache
from engine.worker.failures import free_memory

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 1 << 30


class Card:
    """A card with ``free`` bytes; emptying the cache frees ``cached`` more."""

    def __init__(self, patch: pytest.MonkeyPatch, free: int, cached: int = 3 * GIB) -> None:
        self.free, self.cached, self.emptied = free, cached, 0
        patch.setattr(torch.cuda, "mem_get_info", lambda _device: (self.free, 24 * GIB))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "empty_cache", self.empty)

    def empty(self) -> None:
        self.free, self.cached, self.emptied = self.free + self.cached, 0, self.emptied + 1


def test_the_cache_stays_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, RESERVE_BYTES)
    free_memory()
    assert not release_cache(CUDA)
    assert not is_short(CUDA, RESERVE_BYTES)
    assert card.emptied == 0, "after a reload, a fade or a failed frame the running stream keeps its memory"


def test_the_cache_goes_where_memory_is_short_or_has_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, RESERVE_BYTES - 1)
    free_memory()
    assert card.emptied == 1
    assert free_memory_bytes(CUDA) == RESERVE_BYTES - 1 + 3 * GIB
    free_memory()
    assert card.emptied == 1
    free_memory(is_exhausted=True)
    assert card.emptied == 2
    assert release_cache(CUDA, 20 * GIB), "a model that needs more than is free"


def test_other_devices_have_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 0)
    assert not release_cache(CPU, inf)
    assert not is_short(torch.device("mps"), inf)
    assert card.emptied == 0
    assert free_memory_bytes(CPU) > 0
