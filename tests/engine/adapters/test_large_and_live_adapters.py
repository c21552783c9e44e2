"""Adapters that do not fit into the memory, and a broken one that follows a live picture: one line each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
import torch

from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.models.pipelines import picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", CPU, torch.float32)


def declare_large_tensor(path: Path) -> None:
    """Replace a safetensors file by a valid one, a hole, whose one tensor of bytes does not fit as floats."""
    count = psutil.virtual_memory().available // 2
    entry = {"dtype": "I8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({"conv_in.weight": entry}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count)


@pytest.mark.skipif(sys.platform == "win32", reason="files with holes")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(kind: str, pocket: Model, tmp_path: Path) -> None:
    net = save_controlnet(tmp_path / "net", pocket.denoiser)
    path = net if kind == "folder" else tmp_path / "net.safetensors"
    declare_large_tensor(net / "diffusion_pytorch_model.safetensors" if kind == "folder" else path)
    stream = Stream(pocket, 64, 64)
    stream.apply(Snapshot({"/steps": 1, "/control/1": str(path)}))
    stream.settle()
    (note,) = stream.adapters.take_notes()
    assert "more than is free" in note
    stream.adapters.close()
    stream.close()


def test_a_lora_needs_room_for_the_weights_that_it_changes(
    pocket: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_lora(tmp_path / "lora.safetensors", {"unet": pocket.denoiser}, rank=1)
    changed = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj")
    needed = sum(m.weight.nbytes for name, m in pocket.denoiser.named_modules() if name.endswith(changed))
    for missing, notes in ((1, 1), (0, 0)):
        monkeypatch.setattr("engine.adapters.base.free_memory_bytes", lambda _device, free=needed - missing: free)
        stream = Stream(pocket, 64, 64)
        stream.apply(Snapshot({"/steps": 1, "/lora/1": str(file)}))
        stream.settle()
        assert len(stream.adapters.take_notes()) == notes
        stream.adapters.close()
        stream.close()


def test_a_broken_image_prompt_of_the_second_source_is_reported_once_and_read_once(
    pocket: Model, tmp_path: Path
) -> None:
    adapter, encoder = save_image_adapter(tmp_path, pocket.denoiser)
    good = adapter.read_bytes()
    adapter.write_bytes(b"no")
    settings = {"/reference": "source", "/reference/model": str(adapter), "/reference/encoder": str(encoder)}
    stream = Stream(pocket, 64, 64)
    notes = []
    for number in range(0, 90, 15):
        stream.second.show(Frame(picture(64), number))
        stream.apply(Snapshot({"/steps": 1} | settings, number))
        stream.step([Frame(picture(64))])
        stream.settle()
        notes += stream.adapters.take_notes()
    assert len(notes) == 1, notes
    adapter.write_bytes(good)
    for number, values in ((100, {"/reference": ""}), (101, {"/reference/model": ""}), (102, {})):
        stream.second.show(Frame(picture(64), number))
        stream.apply(Snapshot({"/steps": 1} | settings | values, number))
        stream.step([Frame(picture(64))])
        stream.settle()
    assert stream.adapters.take_notes() == []
    assert stream.adapters.image_prompt.prompt is not None, "named again, it is read again"
    stream.adapters.close()
    stream.close()
