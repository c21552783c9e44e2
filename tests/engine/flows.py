"""Small checkpoints of SD3, FLUX, Lumina and SANA-Sprint with random weights, saved in the formats of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from engine.models import POCKET
from tests.engine.checkpoints import WIDTH, text_config

LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}


def language_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a chat template and a padding token, as language models have."""
    pocket = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pocket.backend_tokenizer, model_max_length=length)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def kl_autoencoder(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16,) * 4,
        norm_num_groups=8,
        latent_channels=channels,
        scaling_factor=1.3,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_checkpoint(folder: Path, pipeline: str, components: dict[str, Any]) -> Path:
    """Save each component to its folder, and the index that names their classes."""
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, component in components.items():
        if name in ("transformer", "vae"):
            randomize(component)
        component.save_pretrained(folder / name)
        library = type(component).__module__.split(".")[0]
        index[name] = [library, type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _clip_encoders() -> dict[str, Any]:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": CLIPTextModelWithProjection(text_config(tokenizer)),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer, 48)),
    }


def t5_encoder(tokenizer: PreTrainedTokenizerFast, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )


def save_sd3(folder: Path, t5: bool = True, channels: int = 8, vae: torch.nn.Module | None = None) -> Path:
    components = _clip_encoders()
    components["transformer"] = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH + 48,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    if t5:
        components["tokenizer_3"] = language_tokenizer(64)
        components["text_encoder_3"] = t5_encoder(components["tokenizer_3"], 96)
    components |= {"vae": vae or kl_autoencoder(channels), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return save_checkpoint(folder, "StableDiffusion3Pipeline", components)


def save_sd3_tiny(folder: Path) -> Path:
    """Save SD3 with 16 channels and a tiny autoencoder for them, like TAESD3."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=16, shift_factor=0.0
    )
    return save_sd3(folder, channels=16, vae=tiny)


def save_flux(folder: Path, dev: bool = False) -> Path:
    clip = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    tokenizer = language_tokenizer(512)
    transformer = FluxTransformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        pooled_projection_dim=WIDTH,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dev, shift=3.0 if dev else 1.0)
    components = {
        "tokenizer": clip,
        "text_encoder": CLIPTextModel(text_config(clip)),
        "tokenizer_2": tokenizer,
        "text_encoder_2": t5_encoder(tokenizer, 40),
        "transformer": transformer,
        "vae": kl_autoencoder(8),
        "scheduler": scheduler,
    }
    return save_checkpoint(folder, "FluxPipeline", components)


def save_flux2(folder: Path) -> Path:
    tokenizer = language_tokenizer(512)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16,) * 4,
        norm_num_groups=8,
        latent_channels=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    encoder = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, **LANGUAGE))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    components = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": vae,
        "scheduler": scheduler,
    }
    return save_checkpoint(folder, "Flux2KleinPipeline", components)


def save_lumina(folder: Path) -> Path:
    tokenizer = language_tokenizer(256)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=WIDTH,
        learn_sigma=True,
    )
    encoder = GemmaModel(GemmaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    components = {"tokenizer": tokenizer, "text_encoder": encoder, "transformer": transformer, "vae": kl_autoencoder(4)}
    components["vae"].register_to_config(shift_factor=None)
    return save_checkpoint(folder, "LuminaPipeline", components | {"scheduler": FlowMatchEulerDiscreteScheduler()})


def save_lumina2(folder: Path) -> Path:
    tokenizer = language_tokenizer(256)
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=8,
        hidden_size=48,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(300, 64, 64),
        cap_feat_dim=WIDTH,
    )
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    components = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": kl_autoencoder(8),
        "scheduler": scheduler,
    }
    return save_checkpoint(folder, "Lumina2Pipeline", components)


def save_sana(folder: Path) -> Path:
    tokenizer = language_tokenizer(300)
    vae = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=4,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    components = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": vae,
        "scheduler": SCMScheduler(),
    }
    return save_checkpoint(folder, "SanaSprintPipeline", components)


def randomize(module: torch.nn.Module) -> None:
    """Draw all weights at random: layers that training starts at zero would hide what passes through them."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.2)


#: Architecture → function that saves its folder.
FLOWS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3,
    "sd3-tiny": save_sd3_tiny,
    "flux": save_flux,
    "flux2": save_flux2,
    "lumina": save_lumina,
    "lumina2": save_lumina2,
    "sana": save_sana,
}
