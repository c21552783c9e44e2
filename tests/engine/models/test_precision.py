"""Precision by architecture, component and card; the cards and systems are faked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer, T5Config, T5EncoderModel

from engine.models import POCKET, ModelError, load, pick_dtype
from engine.models.architectures import ARCHITECTURES, Architecture
from engine.models.architectures.unet import StableDiffusion
from engine.models.checkpoint import load_components, peek_architecture
from engine.models.components import TEXT_ENCODER_CLASSES
from engine.models.loading import build_model, required_memory_bytes
from engine.models.precision import Precision, has_bfloat16, pick_precision, wider_dtype
from engine.shared.options import EngineOptions
from tests.engine.checkpoints import edit_json, save_sd, save_sdxl
from tests.engine.flows import FLOWS, save_sd3
from tests.engine.single_file import save_single_file

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
U_NETS = [one for one in ARCHITECTURES if one.denoiser_component == "unet"]
TRANSFORMERS = [one for one in ARCHITECTURES if one.denoiser_component == "transformer"]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
#: Name, compute capability → the types of U-Nets and of flow transformers.
CARDS = {
    ("NVIDIA GeForce RTX 5090", (12, 0)): (F16, BF16),
    ("NVIDIA H100 80GB HBM3", (9, 0)): (F16, BF16),
    ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9)): (F16, BF16),
    ("NVIDIA A100-SXM4-40GB", (8, 0)): (F16, BF16),
    ("NVIDIA GeForce RTX 2070 SUPER", (7, 5)): (F16, F32),
    ("Tesla T4", (7, 5)): (F16, F32),
    ("Tesla V100-SXM2-16GB", (7, 0)): (F16, F32),
    ("NVIDIA GeForce GTX 1660 Ti", (7, 5)): (F32, F32),
    ("NVIDIA GeForce GTX 1650", (7, 5)): (F32, F32),
    ("NVIDIA GeForce MX450", (7, 5)): (F32, F32),
    ("NVIDIA T1000 8GB", (7, 5)): (F32, F32),
    ("NVIDIA GeForce GTX 1080", (6, 1)): (F16, F32),
}


def fake_card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], hip: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: name)
    monkeypatch.setattr(torch.version, "hip", hip)


def fake_macos(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), "arm64"))


@pytest.mark.parametrize("card", CARDS, ids=[name for name, _ in CARDS])
def test_each_architecture_gets_what_the_card_computes_correctly(
    card: tuple[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_card(monkeypatch, *card)
    of_unets, of_flows = CARDS[card]
    assert {pick_dtype("auto", CUDA, one) for one in U_NETS} == {of_unets}
    assert {pick_dtype("auto", torch.device("cuda", 1), one) for one in TRANSFORMERS} == {of_flows}
    assert pick_dtype("auto", CUDA) is of_unets
    for name, dtype in (("float32", F32), ("float16", F16), ("bfloat16", BF16)):
        assert pick_dtype(name, CUDA, TRANSFORMERS[0]) is dtype, "a choice of the user stays"


def test_a_card_of_amd_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_card(monkeypatch, "AMD Radeon RX 6800", (10, 3), hip="6.4")
    assert {pick_dtype("auto", CUDA, one) for one in TRANSFORMERS} == {BF16}
    assert {pick_dtype("auto", CUDA, one) for one in U_NETS} == {F16}


@pytest.mark.parametrize(("version", "flows"), [("13.6.1", F32), ("14.0", BF16), ("26.1", BF16), ("", F32)])
def test_mps_has_bfloat16_from_macos_14(version: str, flows: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_macos(monkeypatch, version)
    assert {pick_dtype("auto", MPS, one) for one in U_NETS} == {F16}
    assert {pick_dtype("auto", MPS, one) for one in TRANSFORMERS} == {flows}
    if flows is BF16:
        assert pick_dtype("bfloat16", MPS) is BF16
    else:
        with pytest.raises(ModelError, match="bfloat16 needs macOS 14"):
            pick_dtype("bfloat16", MPS)


def test_torch_is_asked_for_the_version_where_it_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_macos(monkeypatch, "10.16")  # what a Python built for an old system is told
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (15, 0))
    assert has_bfloat16(MPS)


def test_every_architecture_has_one_of_the_half_types() -> None:
    assert {one.half_dtype for one in U_NETS} == {F16}
    assert {one.half_dtype for one in TRANSFORMERS} == {BF16}
    assert Architecture.half_dtype is BF16, "the safe choice where a new architecture names none"


@pytest.mark.parametrize(
    ("capability", "name", "language"),
    [((8, 6), "auto", BF16), ((8, 6), "float16", BF16), ((7, 5), "auto", F32), ((7, 5), "float16", F16)],
)
def test_language_models_are_kept_out_of_float16(
    capability: tuple[int, int], name: str, language: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_card(monkeypatch, "NVIDIA GeForce RTX", capability)
    precision = pick_precision(name, CUDA, StableDiffusion)
    types = {encoder: precision.of(encoder) for encoder in TEXT_ENCODER_CLASSES}
    assert {types[encoder] for encoder in types if encoder.startswith("CLIP")} == {F16}
    assert {types[encoder] for encoder in types if not encoder.startswith("CLIP")} == {language}
    assert precision.of("UNet2DConditionModel") is F16
    assert precision.of("AutoencoderKL") is F16


def test_a_cpu_computes_everything_in_one_type() -> None:
    for name in ("auto", "float32", "float16", "bfloat16"):
        for architecture in (StableDiffusion, *TRANSFORMERS):
            dtype = pick_dtype(name, CPU)
            assert pick_precision(name, CPU, architecture) == Precision(dtype, dtype)
    assert wider_dtype(F16, CPU) is F32


def test_widening_goes_to_bfloat16_first_where_the_card_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_card(monkeypatch, "NVIDIA GeForce RTX 3060", (8, 6))
    assert [wider_dtype(dtype, CUDA) for dtype in (F16, BF16, F32)] == [BF16, F32, None]
    fake_card(monkeypatch, "NVIDIA GeForce RTX 2060", (7, 5))
    assert [wider_dtype(dtype, CUDA) for dtype in (F16, F32)] == [F32, None]


@pytest.mark.parametrize(("family", "save"), FLOWS.items(), ids=list(FLOWS))
def test_the_family_is_known_before_the_weights_are_read(family: str, save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    architecture = peek_architecture(folder)
    assert architecture in TRANSFORMERS, family
    assert architecture.half_dtype is BF16


def test_the_family_of_u_nets_and_single_files_is_known_too(tmp_path: Path) -> None:
    assert peek_architecture(save_sdxl(tmp_path / "xl")) in U_NETS
    save_sd3(tmp_path / "sd3")
    architecture = peek_architecture(save_single_file(tmp_path / "sd3", tmp_path / "single.safetensors"))
    assert architecture in TRANSFORMERS
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps({"unet": ["diffusers", 3], "vae": "x", "a": []}))
    assert peek_architecture(tmp_path / "xl") is None


def save_sd_with_t5(folder: Path) -> Path:
    """Save a U-Net checkpoint whose text encoder is T5, as some have it."""
    save_sd(folder)
    words = len(CLIPTokenizer.from_pretrained(POCKET / "tokenizer"))
    config = T5Config(vocab_size=words, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    edit_json(folder / "model_index.json", **index | {"text_encoder": ["transformers", "T5EncoderModel"]})
    return folder


def test_components_are_loaded_each_in_its_type(tmp_path: Path) -> None:
    components = load_components(save_sd_with_t5(tmp_path), Precision(F16, BF16), EngineOptions())
    assert components["unet"].dtype is F16
    assert components["vae"].dtype is F16
    assert components["text_encoder"].dtype is BF16
    needed = [required_memory_bytes(tmp_path, precision) for precision in (F16, Precision(F16, F32), F32)]
    assert needed[0] < needed[1] < needed[2]


def test_a_prompt_has_the_denoisers_type_whatever_its_encoder_has(tmp_path: Path) -> None:
    components = load_components(save_sd_with_t5(tmp_path), Precision(BF16, F32), EngineOptions())
    model = build_model("mixed", components, CPU, BF16)
    condition = model.encode_prompt("green spiral")
    assert condition.tokens.dtype is BF16
    x = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        assert model.denoise(x, torch.tensor([500.0]), condition).isfinite().all()


def test_auto_is_accepted_as_a_name(tmp_path: Path) -> None:
    model = load(str(save_sd(tmp_path)), CPU, "auto")
    assert model.dtype is pick_dtype("auto", CPU)
    assert load(str(tmp_path), CPU, "float32").dtype is F32
    assert load(str(tmp_path), CPU).dtype is model.dtype


@pytest.mark.parametrize(
    ("force_upcast", "dtype", "device", "capability", "expected"),
    [
        (True, F16, CUDA, (8, 6), BF16),
        (True, F16, CUDA, (7, 5), F32),
        (True, BF16, CUDA, (8, 6), BF16),
        (True, F32, CUDA, (8, 6), F32),
        (False, F16, CUDA, (8, 6), F16),
        (None, F16, CUDA, (8, 6), F16),
        (True, F16, CPU, (8, 6), F16),
    ],
)
def test_an_autoencoder_that_overflows_in_float16_begins_wider(
    force_upcast: bool | None,
    dtype: torch.dtype,
    device: torch.device,
    capability: tuple[int, int],
    expected: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_card(monkeypatch, "NVIDIA GeForce RTX", capability)
    config = save_sd(tmp_path) / "vae" / "config.json"
    values = json.loads(config.read_text())
    values.pop("force_upcast")
    config.write_text(json.dumps(values if force_upcast is None else values | {"force_upcast": force_upcast}))
    # The weights stay where they are: there is no such card here.
    monkeypatch.setattr("engine.models.loading.place", lambda module, *_: module)
    components = load_components(tmp_path, Precision(dtype, dtype), EngineOptions())
    assert build_model("sd", components, device, dtype).autoencoder.dtype is expected
