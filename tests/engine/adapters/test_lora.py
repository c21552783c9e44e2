"""LoRAs against diffusers with PEFT: weights, file layouts, architectures, and files that are rejected."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engine.adapters.lora import MergedLoras
from engine.adapters.lora_file import read_lora
from engine.models import Model, load
from engine.shared.parameter import InvalidValue
from tests.engine.adapter_files import LORA_LAYOUTS, save_lora
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import save_flux, save_flux2, save_lumina2, save_sana, save_sd3
from tests.engine.meta import load_meta
from tests.engine.transfers import Transfers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def model(folder: Path) -> Model:
    return load(str(folder), CPU, torch.float32)


def predict(model: Model, text: str = "green spiral") -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.denoise(x, torch.tensor([700.0, 300.0]), model.encode_prompt(text))


@pytest.mark.parametrize("layout", LORA_LAYOUTS)
def test_several_loras_give_the_predictions_of_diffusers(
    layout: str, folder: Path, model: Model, tmp_path: Path
) -> None:
    modules = {"unet": model.denoiser, "text_encoder": model.architecture.components["text_encoder"]}
    files = [save_lora(tmp_path / f"{i}.safetensors", modules, layout, rank=2 + i, seed=i) for i in range(2)]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    plain = predict(model)
    loras = MergedLoras(modules)
    loras.install([read_lora(file, "StableDiffusionLoraLoaderMixin", modules) for file in files])
    loras.set_weights([0.0, 0.0])
    assert torch.equal(predict(model), plain), "weight 0 is no LoRA"
    for i in range(2):
        # Kohya's layout states α, 2 here; PEFT's has α = r where it states none.
        scale = 2.0 / (2 + i) if layout == "kohya" else 1.0
        same = save_lora(tmp_path / f"same{i}.safetensors", modules, "peft", rank=2 + i, seed=i, scale=scale)
        pipeline.load_lora_weights(str(same), adapter_name=f"a{i}")
    for weights in ([0.8, 0.0], [0.5, -0.7]):
        loras.set_weights(weights)
        pipeline.set_adapters(["a0", "a1"], weights)
        tokens = pipeline.encode_prompt("green spiral", CPU, 1, False)[0]
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = pipeline.unet(x, torch.tensor([700.0, 300.0]), tokens.expand(2, -1, -1)).sample
        assert (predict(model) - expected).abs().max() < 1e-4
        assert (predict(model) - plain).abs().max() > 1e-2
    loras.install([None, None])
    assert torch.equal(predict(model), plain), "removed"


ARCHITECTURES = {
    "sdxl": (save_sdxl, "StableDiffusionXLPipeline"),
    "sd3": (save_sd3, "StableDiffusion3Pipeline"),
    "flux": (save_flux, "FluxPipeline"),
    "flux2": (save_flux2, "Flux2KleinPipeline"),
    "lumina2": (save_lumina2, "Lumina2Pipeline"),
    "sana": (save_sana, "SanaSprintPipeline"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_lora_of_each_architecture(name: str, tmp_path: Path) -> None:
    save, pipeline_class = ARCHITECTURES[name]
    model = load(str(save(tmp_path / "model")), CPU, torch.float32)
    component = model.architecture.denoiser_component
    file = save_lora(tmp_path / "a.safetensors", {component: model.denoiser})
    pipeline = getattr(diffusers, pipeline_class).from_pretrained(tmp_path / "model")
    pipeline.load_lora_weights(str(file), adapter_name="a")
    pipeline.set_adapters(["a"], [0.6])
    x = torch.randn(1, model.latent_channels, 8, 8)
    condition, t = model.encode_prompt("green spiral"), torch.tensor([500.0])
    with torch.inference_mode():
        plain = model.denoise(x, t, condition)
        loras = MergedLoras({component: model.denoiser})
        loras.install([read_lora(file, model.architecture.lora_mixin, {component: model.denoiser})])
        loras.set_weights([0.6])
        output = model.denoise(x, t, condition)
        model.architecture.denoiser = getattr(pipeline, component)
        expected = model.denoise(x, t, condition)
    assert (output - expected).abs().max() < 1e-4
    assert (output - plain).abs().max() > 1e-3


def test_files_without_a_lora_for_this_model_are_rejected(model: Model, tmp_path: Path) -> None:
    modules = {"unet": model.denoiser}

    def rejection(name: str, weights: dict[str, torch.Tensor]) -> str:
        save_file(weights, tmp_path / name)
        with pytest.raises(InvalidValue) as caught:
            read_lora(tmp_path / name, "StableDiffusionLoraLoaderMixin", modules)
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
        read_lora(tmp_path / "torn.safetensors", "StableDiffusionLoraLoaderMixin", modules)
    with pytest.raises(InvalidValue, match="safetensors files"):
        read_lora(tmp_path / "old.pt", "StableDiffusionLoraLoaderMixin", modules)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "Tucker"),
        ("w_norm", "norm layer"),
        ("diff", "full difference"),
    ],
)
def test_another_kind_of_adapter_is_named(entry: str, kind: str, model: Model, tmp_path: Path) -> None:
    file = save_lora(tmp_path / "lora.safetensors", {"unet": model.denoiser}, "kohya")
    save_file(load_file(file) | {f"lora_unet_mid_block_attentions_0_proj_in.{entry}": torch.zeros(2)}, file)
    with pytest.raises(InvalidValue, match=f"holds {kind} weights"):
        read_lora(file, "StableDiffusionLoraLoaderMixin", {"unet": model.denoiser}, model.denoiser.config)


def test_a_float8_lora_is_read(model: Model, tmp_path: Path) -> None:
    file = save_lora(tmp_path / "lora.safetensors", {"unet": model.denoiser}, "kohya")
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(file).items()}, file)
    updates = read_lora(file, "StableDiffusionLoraLoaderMixin", {"unet": model.denoiser}, model.denoiser.config)
    assert updates
    assert all(update.A.dtype == update.B.dtype == torch.float32 for update in updates.values())


def test_the_weights_of_all_layers_are_set_without_a_copy_for_each(folder: Path, model: Model, tmp_path: Path) -> None:
    on_meta = load_meta(str(folder))
    files = [save_lora(tmp_path / f"{rank}.safetensors", {"unet": model.denoiser}, rank=rank) for rank in (2, 3)]
    merged = MergedLoras({"unet": on_meta.denoiser})
    loras = [read_lora(file, "StableDiffusionLoraLoaderMixin", {"unet": on_meta.denoiser}) for file in files]
    with Transfers() as transfers:
        merged.install(loras)
    assert len(loras[0]) > 8
    assert len(transfers.uploads) == 1, "which rank belongs to which LoRA, the same in every layer"
    with Transfers() as transfers:
        for weight in (0.1, 0.2):
            merged.set_weights([weight, 0.5])
    assert not transfers.uploads
    assert not transfers.reads
