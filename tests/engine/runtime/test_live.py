"""Settings of a live process, and that offline rendering has none of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.runtime.live import SWITCH_SECONDS, configure_live
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Put the process's settings back."""
    before = sys.getswitchinterval(), torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    sys.setswitchinterval(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.set_float32_matmul_precision(before[2])


def test_on_cuda_kernels_are_tried_and_float32_products_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    configure_live(torch.device("cuda"))
    assert torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "high"
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)


def test_on_rocm_kernels_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    configure_live(torch.device("cuda"))
    assert not torch.backends.cudnn.benchmark


def test_on_a_cpu_results_stay_as_they_are() -> None:
    configure_live(torch.device("cpu"))
    assert not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"


def test_rendering_changes_none_of_them(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    frame = Frame(np.zeros((64, 64, 4), np.uint8))
    try:
        assert list(render([frame], Snapshot({"/size": "64x64", "/steps": 1}), EngineOptions("cpu")))
    finally:
        torch.use_deterministic_algorithms(False)
    assert sys.getswitchinterval() == before
    assert not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"
