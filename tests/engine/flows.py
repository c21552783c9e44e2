"""Small flow-matching transformers with random weights, in the formats of the real ones: SD3, FLUX, Lumina, SANA-Sprint."""

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

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}


def language_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template and a padding token, as language models have."""
    pocket = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pocket.backend_tokenizer, model_max_length=length)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def kl(channels: int) -> AutoencoderKL:
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


def save(folder: Path, pipeline: str, parts: dict[str, Any]) -> Path:
    """Writes each part to its folder, and the index that names their classes."""
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, part in parts.items():
        if name in ("transformer", "vae"):
            lively(part)
        part.save_pretrained(folder / name)
        library = type(part).__module__.split(".")[0]
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _clips() -> dict[str, Any]:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    one, two = (
        CLIPTextModelWithProjection(text_config(tokenizer)),
        CLIPTextModelWithProjection(text_config(tokenizer, 48)),
    )
    return {"tokenizer": tokenizer, "tokenizer_2": tokenizer, "text_encoder": one, "text_encoder_2": two}


def _t5(tokenizer: PreTrainedTokenizerFast, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )


def save_sd3(folder: Path, t5: bool = True, channels: int = 8, vae: torch.nn.Module | None = None) -> Path:
    parts = _clips()
    parts["transformer"] = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=96, caption_projection_dim=32, pooled_projection_dim=WIDTH + 48, pos_embed_max_size=16,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    if t5:
        parts["tokenizer_3"] = language_tokenizer(64)
        parts["text_encoder_3"] = _t5(parts["tokenizer_3"], 96)
    parts |= {"vae": vae or kl(channels), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return save(folder, "StableDiffusion3Pipeline", parts)


def save_sd3_tiny(folder: Path) -> Path:
    """With 16 channels and the tiny autoencoder for them, as TAESD3 is."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=16, shift_factor=0.0
    )
    return save_sd3(folder, channels=16, vae=tiny)


def save_flux(folder: Path, dev: bool = False) -> Path:
    clip = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    tokenizer = language_tokenizer(512)
    transformer = FluxTransformer2DModel(
        in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=40,
        pooled_projection_dim=WIDTH, guidance_embeds=dev, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dev, shift=3.0 if dev else 1.0)
    parts = {
        "tokenizer": clip, "text_encoder": CLIPTextModel(text_config(clip)), "tokenizer_2": tokenizer,
        "text_encoder_2": _t5(tokenizer, 40), "transformer": transformer, "vae": kl(8), "scheduler": scheduler,
    }  # fmt: skip
    return save(folder, "FluxPipeline", parts)


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
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    encoder = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, **LANGUAGE))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": vae,
        "scheduler": scheduler,
    }
    return save(folder, "Flux2KleinPipeline", parts)


def save_lumina(folder: Path) -> Path:
    tokenizer = language_tokenizer(256)
    transformer = LuminaNextDiT2DModel(
        sample_size=16, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
        cross_attention_dim=WIDTH, learn_sigma=True,
    )  # fmt: skip
    encoder = GemmaModel(GemmaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    parts = {"tokenizer": tokenizer, "text_encoder": encoder, "transformer": transformer, "vae": kl(4)}
    parts["vae"].register_to_config(shift_factor=None)
    return save(folder, "LuminaPipeline", parts | {"scheduler": FlowMatchEulerDiscreteScheduler()})


def save_lumina2(folder: Path) -> Path:
    tokenizer = language_tokenizer(256)
    transformer = Lumina2Transformer2DModel(
        sample_size=16, in_channels=8, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64), cap_feat_dim=WIDTH,
    )  # fmt: skip
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": kl(8),
        "scheduler": scheduler,
    }
    return save(folder, "Lumina2Pipeline", parts)


def save_sana(folder: Path) -> Path:
    tokenizer = language_tokenizer(300)
    vae = AutoencoderDC(
        latent_channels=8, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6, encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate", downsample_block_type="Conv", scaling_factor=0.41407,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH, sample_size=4, guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **LANGUAGE))
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer,
        "vae": vae,
        "scheduler": SCMScheduler(),
    }
    return save(folder, "SanaSprintPipeline", parts)


def lively(module: torch.nn.Module) -> None:
    """Fresh random weights everywhere: layers that training starts at zero would hide what goes through them."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.2)


#: Family → how its folder is saved.
FLOWS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3, "sd3-tiny": save_sd3_tiny,
    "flux": save_flux, "flux2": save_flux2, "lumina": save_lumina, "lumina2": save_lumina2, "sana": save_sana,
}  # fmt: skip
