"""Text encoders and the room on a CUDA device, with stand-ins for the card and for the move to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from engine.models import Model, ModelError, load, loading, text_encoder_placement
from engine.models.loading import _check_memory, large_text_encoder_bytes, required_memory_bytes
from engine.models.text_encoder_placement import PlacedEncoder, may_leave, module_bytes
from engine.runtime.device_memory import RESERVE_BYTES
from tests.engine.flows import save_sd3
from tests.engine.transfers import META, Transfers

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Encoder(nn.Module):
    """A module that notes where it is moved, and claims to be there: no CUDA device is here."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.where = CPU
        self.moves: list[str] = []
        self.calls: list[str] = []

    def to(self, device: torch.device) -> Encoder:  # type: ignore[override]
        self.where = device
        self.moves.append(device.type)
        return self

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(self.where.type)
        return self.layer(ids)


class Card:
    """Free memory by what lies on the card."""

    def __init__(self, patch: pytest.MonkeyPatch, free: float, encoder: Encoder, size: int) -> None:
        self.free = free

        def is_short(_device: torch.device, needed: float = RESERVE_BYTES) -> bool:
            return self.free - (size if encoder.where.type == "cuda" else 0) < needed

        patch.setattr(text_encoder_placement, "is_short", is_short)
        patch.setattr(text_encoder_placement, "release_cache", lambda *_arguments: True)
        patch.setattr(text_encoder_placement, "_move", lambda value, _device: value)
        patch.setattr(PlacedEncoder, "_where", lambda placed: placed._module.where)


def test_a_large_encoder_is_on_the_card_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    size = module_bytes(encoder)
    card = Card(monkeypatch, RESERVE_BYTES + 2 * size, encoder, size)
    PlacedEncoder(encoder, CUDA)
    encoder(torch.zeros(1, 4))
    assert encoder.moves == ["cuda"]
    assert encoder.calls == ["cuda"]
    card.free = RESERVE_BYTES  # another model was loaded
    encoder(torch.zeros(1, 4))
    assert encoder.calls == ["cuda", "cuda"]
    assert encoder.moves == ["cuda", "cpu"], "it leaves the card after the prompt"
    encoder(torch.zeros(1, 4))
    assert encoder.calls[-1] == "cpu", "and encodes on the CPU"
    card.free = RESERVE_BYTES + size
    encoder(torch.zeros(1, 4))
    assert encoder.calls[-1] == "cuda", "until there is room for it"


def test_a_model_that_is_loaded_next_gets_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    size = module_bytes(encoder)
    Card(monkeypatch, RESERVE_BYTES + size, encoder, size)
    placed = PlacedEncoder(encoder, CUDA)
    placed.make_room(RESERVE_BYTES)
    assert encoder.where == CUDA
    placed.make_room(RESERVE_BYTES + 1)
    assert encoder.where == CPU
    placed.make_room(RESERVE_BYTES + size + 1)
    assert encoder.moves == ["cuda", "cpu"]


def test_inputs_and_outputs_keep_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = T5EncoderModel(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)).eval()
    ids = torch.tensor([[3, 7, 1]])
    with torch.inference_mode():
        expected = encoder(ids, output_hidden_states=True)
        monkeypatch.setattr(text_encoder_placement, "is_short", lambda *_arguments: False)
        placed = PlacedEncoder(encoder, CPU)
        output = encoder(ids, output_hidden_states=True)
        placed.make_room()
    assert type(output) is type(expected)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output[0], expected[0])
    assert len(output.hidden_states) == len(expected.hidden_states) == 3


def test_only_large_encoders_leave_and_only_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    assert not may_leave(layer, CUDA)
    monkeypatch.setattr(text_encoder_placement, "LARGE_BYTES", module_bytes(layer))
    assert may_leave(layer, CUDA)
    assert not may_leave(layer, CPU)
    assert not may_leave(layer, torch.device("mps"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("sd3"))


def test_a_model_fits_without_the_encoders_that_stay_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loading, "LARGE_BYTES", required_memory_bytes(folder, torch.float32, components=("text_encoder_3",))
    )
    large = large_text_encoder_bytes(folder, torch.float32)
    assert 0 < large < required_memory_bytes(folder, torch.float32)
    needed = 1.1 * required_memory_bytes(folder, torch.float32)
    free = [needed - 1.1 * large]
    asked: list[float] = []
    monkeypatch.setattr(loading, "is_short", lambda device, bytes_: device.type == "cuda" and free[0] < bytes_)
    monkeypatch.setattr(loading, "release_cache", lambda *_arguments: True)
    monkeypatch.setattr(loading, "free_memory_bytes", lambda _device: free[0])
    _check_memory("m", folder, CUDA, torch.float32, False, asked.append)
    assert asked == [pytest.approx(needed)], "the running model is asked for room first"
    free[0] -= 1
    with pytest.raises(ModelError, match="needs"):
        _check_memory("m", folder, CUDA, torch.float32, False, asked.append)


def test_weights_are_checked_before_they_are_on_the_device(folder: Path) -> None:
    with Transfers() as transfers:
        model: Any = load(str(folder), META, torch.float32)
    assert isinstance(model, Model)
    assert model.denoiser.device == META
    assert not transfers.reads
