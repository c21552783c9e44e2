"""The line on a card that is there and unused: at the start of the engine, and in what the probe prints."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render
from engine.worker.unused_card import explain, note_unused_card
from tests.programs import needs_linux, nvidia_smi, write_program

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the PATH, and this torch a build for processors."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    return tmp_path


def install_card(path: Path, driver: str = "581.29") -> None:
    write_program(path / "nvidia-smi", nvidia_smi(f"NVIDIA GeForce RTX 4070, {driver}, 8.9"))


@needs_linux
@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_the_engine_notes_one_line_with_the_command(path: Path, requested: str) -> None:
    install_card(path)
    notes: list[str] = []
    thread = note_unused_card(requested, CPU, notes)
    assert thread is not None
    thread.join(20)
    assert len(notes) == 1
    assert notes[0].startswith("NVIDIA GeForce RTX 4070 (driver 581.29) is not used: PyTorch ")
    assert notes[0].endswith("--index-url https://download.pytorch.org/whl/cu130")
    assert f'run: "{sys.executable}" -m pip install --force-reinstall' in notes[0]


@needs_linux
def test_nothing_is_said_where_the_processor_is_requested(path: Path) -> None:
    install_card(path)
    notes: list[str] = []
    assert note_unused_card("cpu", CPU, notes) is None
    assert notes == []


@needs_linux
def test_an_offline_rendering_logs_the_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    install_card(path)
    frames = [Frame(np.zeros((64, 64, 4), np.uint8))]
    for device, lines in (("cpu", 0), ("auto", 1)):
        caplog.clear()
        try:
            list(render(frames, Snapshot({"/size": "64x64"}), EngineOptions(device, accelerate="eager")))
        finally:
            torch.use_deterministic_algorithms(False)
        assert [record.getMessage()[:23] for record in caplog.records].count("NVIDIA GeForce RTX 4070") == lines


@needs_linux
def test_a_driver_that_is_too_old_for_the_build_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    install_card(path, "551.23")
    assert "it does not run PyTorch with CUDA 13.0; run: " in explain(CPU)
    assert explain(CPU).endswith("cu126")
    install_card(path, "470.82")
    assert "needs driver" in explain(CPU)


def test_a_card_that_torch_shows_but_has_no_code_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    line = explain(torch.device("cuda:0"))
    assert line.startswith("NVIDIA GeForce GTX 1080 is not used: it does not run PyTorch with CUDA 13.0; run: ")
    assert line.endswith("cu126")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert explain(torch.device("cuda:0")) == ""


def test_rocm_and_macs_have_nothing_to_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(torch.device("mps")) == ""
    monkeypatch.setattr(torch.version, "hip", "7.2.0")
    assert explain(torch.device("cuda")) == ""
