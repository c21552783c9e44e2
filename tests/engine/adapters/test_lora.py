"""LoRA against diffusers with PEFT, and what weights, files and slots do."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from engine.adapters.lora import MergedLoras
from engine.adapters.lora_file import read_lora
from engine.models import Model, load
from engine.shared.parameter import InvalidValue
from tests.engine.adapter_files import LORA_LAYOUTS, save_lora
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import save_flux, save_flux2, save_lumina2, save_sana, save_sd3

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def model(folder: Path) -> Model:
    return load(str(folder), CPU, torch.float32)


def answer(model: Model, text: str = "green spiral") -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.denoise(x, torch.tensor([700.0, 300.0]), model.encode_prompt(text))


@pytest.mark.parametrize("kind", LORA_LAYOUTS)
def test_a_stack_of_loras_is_what_diffusers_makes_of_them(
    kind: str, folder: Path, model: Model, tmp_path: Path
) -> None:
    parts = {"unet": model.denoiser, "text_encoder": model.architecture.components["text_encoder"]}
    files = [save_lora(tmp_path / f"{i}.safetensors", parts, kind, rank=2 + i, seed=i) for i in range(2)]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    plain = answer(model)
    loras = MergedLoras(parts)
    loras.install([read_lora(file, "StableDiffusionLoraLoaderMixin", parts) for file in files])
    loras.set_weights([0.0, 0.0])
    assert torch.equal(answer(model), plain), "weight 0 is no LoRA"
    for i in range(2):
        # Kohya's layout says α, 2 here; PEFT's takes α = r where it says nothing.
        scale = 2.0 / (2 + i) if kind == "kohya" else 1.0
        same = save_lora(tmp_path / f"same{i}.safetensors", parts, "peft", rank=2 + i, seed=i, scale=scale)
        pipeline.load_lora_weights(str(same), adapter_name=f"a{i}")
    for weights in ([0.8, 0.0], [0.5, -0.7]):
        loras.set_weights(weights)
        pipeline.set_adapters(["a0", "a1"], weights)
        tokens = pipeline.encode_prompt("green spiral", CPU, 1, False)[0]
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = pipeline.unet(x, torch.tensor([700.0, 300.0]), tokens.expand(2, -1, -1)).sample
        assert (answer(model) - expected).abs().max() < 1e-4
        assert (answer(model) - plain).abs().max() > 1e-2
    loras.install([None, None])
    assert torch.equal(answer(model), plain), "taken off again"


FAMILIES = {
    "sdxl": (save_sdxl, "StableDiffusionXLPipeline"), "sd3": (save_sd3, "StableDiffusion3Pipeline"), "flux": (save_flux, "FluxPipeline"),
    "flux2": (save_flux2, "Flux2KleinPipeline"), "lumina2": (save_lumina2, "Lumina2Pipeline"), "sana": (save_sana, "SanaSprintPipeline"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lora_of_each_family(name: str, tmp_path: Path) -> None:
    save, kind = FAMILIES[name]
    model = load(str(save(tmp_path / "model")), CPU, torch.float32)
    part = model.architecture.denoiser_component
    file = save_lora(tmp_path / "a.safetensors", {part: model.denoiser})
    pipeline = getattr(diffusers, kind).from_pretrained(tmp_path / "model")
    pipeline.load_lora_weights(str(file), adapter_name="a")
    pipeline.set_adapters(["a"], [0.6])
    x = torch.randn(1, model.latent_channels, 8, 8)
    condition, t = model.encode_prompt("green spiral"), torch.tensor([500.0])
    with torch.inference_mode():
        plain = model.denoise(x, t, condition)
        loras = MergedLoras({part: model.denoiser})
        loras.install([read_lora(file, model.architecture.lora_mixin, {part: model.denoiser})])
        loras.set_weights([0.6])
        found = model.denoise(x, t, condition)
        model.architecture.denoiser = getattr(pipeline, part)
        expected = model.denoise(x, t, condition)
    assert (found - expected).abs().max() < 1e-4
    assert (found - plain).abs().max() > 1e-3


def test_files_that_are_no_lora_of_this_model(model: Model, tmp_path: Path) -> None:
    parts = {"unet": model.denoiser}

    def rejection(name: str, weights: dict[str, torch.Tensor]) -> str:
        save_file(weights, tmp_path / name)
        with pytest.raises(InvalidValue) as caught:
            read_lora(tmp_path / name, "StableDiffusionLoraLoaderMixin", parts)
        return str(caught.value)

    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert "no LoRA layers" in rejection("plain.safetensors", {"unet.weight": torch.zeros(2)})
    wide = {f"{layer}.lora_A.weight": torch.zeros(2, 999), f"{layer}.lora_B.weight": torch.zeros(32, 2)}
    assert "another model" in rejection("wide.safetensors", wide)
    foreign = {
        "unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 32),
        "unet.nowhere.to_q.lora_B.weight": torch.zeros(32, 2),
    }
    assert "another model" in rejection("foreign.safetensors", foreign)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(InvalidValue, match="cannot be read"):
        read_lora(tmp_path / "torn.safetensors", "StableDiffusionLoraLoaderMixin", parts)
    with pytest.raises(InvalidValue, match="safetensors files"):
        read_lora(tmp_path / "old.pt", "StableDiffusionLoraLoaderMixin", parts)
