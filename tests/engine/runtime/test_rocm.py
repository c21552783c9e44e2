"""ROCm: MIOpen chooses kernels without timing them, and shapes that are new to it are recognized."""

from __future__ import annotations

import pytest
import torch

from engine.runtime.rocm import NewShapes, limit_kernel_search


def test_the_search_for_kernels_is_limited_on_rocm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(torch.version, "hip", None)
    limit_kernel_search(environment)
    assert environment == {}
    monkeypatch.setattr(torch.version, "hip", "6.4")
    limit_kernel_search(environment)
    assert environment == {"MIOPEN_FIND_MODE": "FAST"}


def test_a_mode_that_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    environment = {"MIOPEN_FIND_MODE": "NORMAL"}
    limit_kernel_search(environment)
    assert environment == {"MIOPEN_FIND_MODE": "NORMAL"}


def test_a_shape_is_new_once_and_on_rocm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = NewShapes()
    monkeypatch.setattr(torch.version, "hip", None)
    assert not shapes.add((1, 64))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert [shapes.add(shape) for shape in ((1, 64), (2, 64), (1, 64))] == [True, True, False]
