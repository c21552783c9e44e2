"""Registration: an architecture in a module of its folder is discovered and loaded without any other edit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel

from engine.bench.small_weights import flow_autoencoder, language_tokenizer, t5_encoder
from engine.diffusion.stream import Stream
from engine.models import ModelError, architectures, load
from engine.models.architectures import Architecture, discover, find_architecture, find_single_file_architecture
from engine.models.architectures.unet import StableDiffusion, StableDiffusionXL
from engine.shared.frame import Frame
from tests.engine.checkpoints import save_sd
from tests.engine.flows import save_checkpoint

MODULE = '''"""PixArt-α: a diffusion transformer with a T5 text encoder."""

import torch

from engine.models.architectures.base import Architecture, Condition


class PixArt(Architecture):
    title, denoiser_class, patch = "PixArt", "PixArtTransformer2DModel", 2
    required_components = ("text_encoder", "tokenizer")

    @torch.inference_mode()
    def encode_prompt(self, text):
        encoded = self.tokenize("tokenizer", text, 32)
        states = self.components["text_encoder"](encoded.input_ids, attention_mask=encoded.attention_mask)[0]
        return Condition(states, mask=encoded.attention_mask)

    def denoise(self, x, t, condition, guidance, controlnets=None):
        output = self.compiled_denoiser(
            x,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return output.chunk(2, 1)[0]  # the second half is a learned variance
'''


def save_pixart(folder: Path) -> Path:
    tokenizer = language_tokenizer(32)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        cross_attention_dim=16, caption_channels=40, use_additional_conditions=False,
    )  # fmt: skip
    components = {
        "tokenizer": tokenizer, "text_encoder": t5_encoder(tokenizer, 40), "transformer": transformer,
        "vae": flow_autoencoder(4), "scheduler": DDIMScheduler(beta_schedule="scaled_linear"),
    }  # fmt: skip
    return save_checkpoint(folder, "PixArtAlphaPipeline", components)


def test_an_architecture_that_exists_only_in_its_file_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    folder = save_pixart(tmp_path / "model")
    with pytest.raises(ModelError, match="denoiser PixArtTransformer2DModel is not supported"):
        load(str(folder), torch.device("cpu"), torch.float32)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pixart.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path / "modules")])
    monkeypatch.setattr(architectures, "ARCHITECTURES", discover())
    monkeypatch.delitem(sys.modules, "engine.models.architectures.pixart")
    model = load(str(folder), torch.device("cpu"), torch.float32)
    assert model.architecture.title == "PixArt"
    stream = Stream(model, 64, 64)
    frames = stream.step([Frame(np.full((64, 64, 4), 90, np.uint8))]) or stream.step([])
    assert frames is not None
    assert frames[0].pixels.shape == (64, 64, 4)
    condition, x = model.encode_prompt("green spiral"), torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        output = model.denoise(x, torch.tensor([500.0, 500.0]), condition)
    assert output.shape == x.shape
    assert output.isfinite().all()


def test_every_architecture_says_what_it_serves() -> None:
    classes = discover()
    assert len({architecture.title for architecture in classes}) == len(classes)
    for architecture in classes:
        assert architecture.denoiser_class
        assert architecture.required_components
        assert bool(architecture.single_file_key) == bool(architecture.single_file_pipeline)


def test_the_most_derived_class_is_used(tmp_path: Path) -> None:
    components = load(str(save_sd(tmp_path)), torch.device("cpu"), torch.float32).architecture.components
    assert find_architecture(components) is StableDiffusion
    assert find_architecture({**components, "text_encoder_2": object()}) is StableDiffusionXL
    assert find_architecture({}) is None
    keys = ["model.diffusion_model.input_blocks.0.0.weight"]
    assert find_single_file_architecture(keys) is StableDiffusion
    assert find_single_file_architecture([*keys, "conditioner.embedders.1.model.weight"]) is StableDiffusionXL
    assert find_single_file_architecture(["model.diffusion_model.weight"]) is None
    assert issubclass(StableDiffusionXL, Architecture)
