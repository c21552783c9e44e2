"""The built-in transformer: its size, what it shares with the pocket model, and its answers in diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from engine.adapters.lora import MergedLoras
from engine.adapters.lora_file import read_lora
from engine.diffusion.schedule import noise
from engine.models import BUILT_IN, POCKET, POCKET_DIT, Model, ModelError, load
from engine.models.checkpoint import resolve
from engine.shared.options import EngineOptions
from tests.engine.adapter_files import save_lora
from tests.engine.models.pipelines import PROMPT, SEED, is_close, stream_latent


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pocket-dit", torch.device("cpu"), torch.float32)


def load_pipeline() -> StableDiffusion3Pipeline:
    absent = {f"{component}_{number}": None for component in ("text_encoder", "tokenizer") for number in (2, 3)}
    return StableDiffusion3Pipeline.from_pretrained(POCKET_DIT, torch_dtype=torch.float32, **absent)


def test_names_of_built_in_models_are_folders_and_an_error_lists_them() -> None:
    assert {name: resolve(name, EngineOptions()) for name in BUILT_IN} == {"pocket": POCKET, "pocket-dit": POCKET_DIT}
    with pytest.raises(ModelError, match="use pocket, pocket-dit, a path"):
        resolve("/pocket-sdxl", EngineOptions())


def test_the_folder_is_small_and_shares_all_but_its_transformer() -> None:
    files = [path for path in POCKET_DIT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert max(path.stat().st_size for path in files) < 4 * 2**20
    for name in ("vae", "text_encoder", "tokenizer"):
        shared = {path.name: path.read_bytes() for path in (POCKET / name).iterdir()}
        assert {path.name: path.read_bytes() for path in (POCKET_DIT / name).iterdir()} == shared


def test_it_is_a_flow_with_the_pocket_models_latents(model: Model) -> None:
    assert (model.latent_channels, model.factor) == (8, 8)
    schedule = model.noise_schedule
    assert (schedule.prediction, schedule.shift, schedule.dynamic_shift) == ("flow", 1.0, None)
    assert model.architecture.title == "Phosphene pocket transformer"


def test_the_pipeline_of_diffusers_gives_the_same_picture(model: Model) -> None:
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    condition = model.architecture.encode_prompt(PROMPT)
    arguments = {"guidance_scale": 1.0, "output_type": "latent", "height": 64, "width": 64}
    latents = noise((SEED, SEED), 0.0, 8, model.latent_shape(64, 64))[:1]
    expected = pipeline(
        prompt_embeds=condition.tokens,
        pooled_prompt_embeds=condition.pooled,
        latents=latents,
        sigmas=[1.0, 0.5],
        **arguments,
    )[0]
    assert is_close(stream_latent(model, 64, [1000, 500], **{"/mode": "text", "/eta": 0.0}), expected)


def test_a_lora_changes_its_answers_as_in_the_pipeline(model: Model, tmp_path: Path) -> None:
    modules = {"transformer": model.denoiser}
    file = save_lora(tmp_path / "a.safetensors", modules)
    pipeline = load_pipeline()
    pipeline.load_lora_weights(str(file), adapter_name="a")
    pipeline.set_adapters(["a"], [0.6])
    condition = model.encode_prompt(PROMPT)
    x, t = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0])
    loras = MergedLoras(modules)
    with torch.inference_mode():
        plain = model.denoise(x, t, condition)
        loras.install([read_lora(file, model.architecture.lora_mixin, modules)])
        loras.set_weights([0.6])
        output = model.denoise(x, t, condition)
        expected = pipeline.transformer(x, condition.tokens, condition.pooled, t, return_dict=False)[0]
        loras.install([None])
        assert torch.equal(model.denoise(x, t, condition), plain)
    assert (output - expected).abs().max() < 1e-4
    assert (output - plain).abs().max() > 1e-3
