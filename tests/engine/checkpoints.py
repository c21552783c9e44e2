"""Small U-Net checkpoints with random weights, saved in the formats of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)

from engine.bench.small_weights import WIDTH, clip_encoder, clip_tokenizer, kl_autoencoder, unet


def save_sd(
    folder: Path,
    scheduler: str = "DDIMScheduler",
    prediction: str = "epsilon",
    tiny: bool = False,
    embedded: bool = True,
) -> Path:
    """Save a Stable Diffusion folder: one text encoder, a KL autoencoder (or a tiny one), ε- or v-prediction."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    clip_encoder().save_pretrained(folder / "text_encoder")
    unet(time_cond_proj_dim=16 if scheduler == "LCMScheduler" and embedded else None).save_pretrained(folder / "unet")
    _autoencoder(tiny).save_pretrained(folder / "vae")
    scheduler_class = {
        "DDIMScheduler": DDIMScheduler,
        "LCMScheduler": LCMScheduler,
        "EulerDiscreteScheduler": EulerDiscreteScheduler,
    }[scheduler]
    scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny" if tiny else "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def save_sdxl(folder: Path) -> Path:
    """Save an SDXL folder: two text encoders, pooled embeddings and time ids."""
    save_sd(folder, "EulerDiscreteScheduler")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer_2")
    clip_encoder(True, 48).save_pretrained(folder / "text_encoder_2")
    unet(
        cross=WIDTH + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    ).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _autoencoder(tiny: bool) -> torch.nn.Module:
    if tiny:
        return AutoencoderTiny(
            encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=4
        )
    return kl_autoencoder()


def edit_json(path: Path, **entries: object) -> None:
    """Add entries to the object in a JSON file, or replace them."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")
