"""A small model of every family with random weights, built in memory: for checks that take seconds for all of them.

The layers are those of the real models, their numbers and widths are not. So a check of such a model finds an operator
that a device lacks or computes wrongly, but not an overflow that only real weights lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.bench.random_weights import NOISE_SCHEDULE, Components
from engine.models.checkpoint import POCKET

WIDTH = 32
_LANGUAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def clip_tokenizer() -> Any:
    """Return the built-in model's tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer")


def language_tokenizer(length: int) -> Any:
    """Return a byte-level tokenizer with a padding token and a chat template, as language models have."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=clip_tokenizer().backend_tokenizer, model_max_length=length)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def clip_encoder(with_projection: bool = False, width: int = WIDTH) -> Any:
    """Return CLIP's text encoder with two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=width, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)


def t5_encoder(tokenizer: Any, width: int) -> Any:
    """Return T5's encoder with one layer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def kl_autoencoder(channels: int = 4, kind: str = "AutoencoderKL", **settings: Any) -> Any:
    """Return a KL autoencoder of the latent's size."""
    import diffusers

    return getattr(diffusers, kind)(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16,) * 4, norm_num_groups=8, latent_channels=channels, **settings,
    )  # fmt: skip


def flow_autoencoder(channels: int, shift_factor: float | None = 0.06) -> Any:
    """Return a KL autoencoder as flow models have: without the convolutions around the latent."""
    return kl_autoencoder(
        channels, scaling_factor=1.3, shift_factor=shift_factor, use_quant_conv=False, use_post_quant_conv=False
    )


def unet(channels: int = 4, cross: int = WIDTH, **settings: Any) -> Any:
    """Return a U-Net of two levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=8, cross_attention_dim=cross, **settings,
    )  # fmt: skip


def stable_diffusion() -> Components:
    """Build Stable Diffusion with a KL autoencoder."""
    return {
        "unet": unet(),
        "vae": kl_autoencoder(),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "scheduler": {"_class_name": "EulerDiscreteScheduler", **NOISE_SCHEDULE},
        "index": {"_class_name": "StableDiffusionPipeline"},
    }


def sdxl() -> Components:
    """Build SDXL with a KL autoencoder."""
    conditions: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    denoiser = unet(cross=WIDTH + 48, projection_class_embeddings_input_dim=48 + 6 * 8, **conditions)
    return stable_diffusion() | {
        "unet": denoiser,
        "text_encoder_2": clip_encoder(True, 48),
        "tokenizer_2": clip_tokenizer(),
        "index": {"_class_name": "StableDiffusionXLPipeline"},
    }


def sd3(channels: int = 8) -> Components:
    """Build Stable Diffusion 3 with all three text encoders."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=96, caption_projection_dim=32, pooled_projection_dim=WIDTH + 48,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    tokenizer = language_tokenizer(64)
    return {
        "transformer": transformer,
        "vae": flow_autoencoder(channels),
        "text_encoder": clip_encoder(True),
        "text_encoder_2": clip_encoder(True, 48),
        "text_encoder_3": t5_encoder(tokenizer, 96),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": tokenizer,
        "scheduler": _FLOW,
        "index": {"_class_name": "StableDiffusion3Pipeline"},
    }


def flux(is_guided: bool = True) -> Components:
    """Build FLUX.1: dev, or schnell, which has no guidance embedding."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=WIDTH, guidance_embeds=is_guided, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    tokenizer = language_tokenizer(512)
    return {
        "transformer": transformer,
        "vae": flow_autoencoder(8),
        "text_encoder": clip_encoder(),
        "text_encoder_2": t5_encoder(tokenizer, 40),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": tokenizer,
        "scheduler": _FLOW,
        "index": {"_class_name": "FluxPipeline"},
    }


def flux2() -> Components:
    """Build FLUX.2 klein."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = kl_autoencoder(kind="AutoencoderKLFlux2")
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    tokenizer = language_tokenizer(512)
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, **_LANGUAGE)),
        "tokenizer": tokenizer,
        "scheduler": _FLOW | {"use_dynamic_shifting": True},
        "index": {"_class_name": "Flux2KleinPipeline"},
    }


def lumina() -> Components:
    """Build Lumina-Next."""
    from diffusers import LuminaNextDiT2DModel
    from transformers import GemmaConfig, GemmaModel

    transformer = LuminaNextDiT2DModel(
        sample_size=16, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=16, cross_attention_dim=WIDTH, learn_sigma=True,
    )  # fmt: skip
    tokenizer = language_tokenizer(256)
    return {
        "transformer": transformer,
        "vae": flow_autoencoder(4, None),
        "text_encoder": GemmaModel(GemmaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **_LANGUAGE)),
        "tokenizer": tokenizer,
        "scheduler": _FLOW,
        "index": {"_class_name": "LuminaPipeline"},
    }


def lumina2() -> Components:
    """Build Lumina-Image 2."""
    from diffusers import Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = Lumina2Transformer2DModel(
        sample_size=16, in_channels=8, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64), cap_feat_dim=WIDTH,
    )  # fmt: skip
    tokenizer = language_tokenizer(256)
    return {
        "transformer": transformer,
        "vae": flow_autoencoder(8),
        "text_encoder": Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **_LANGUAGE)),
        "tokenizer": tokenizer,
        "scheduler": _FLOW | {"use_dynamic_shifting": True},
        "index": {"_class_name": "Lumina2Pipeline"},
    }


def sana() -> Components:
    """Build SANA-Sprint with a deep-compression autoencoder."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH,
        sample_size=4, guidance_embeds=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=8, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6, encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate", downsample_block_type="Conv", scaling_factor=0.41407,
    )  # fmt: skip
    tokenizer = language_tokenizer(300)
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, **_LANGUAGE)),
        "tokenizer": tokenizer,
        "scheduler": {"_class_name": "SCMScheduler", "num_train_timesteps": 1000},
        "index": {"_class_name": "SanaSprintPipeline"},
    }


#: Family → what builds it, on the CPU and in float32.
FAMILIES: dict[str, Callable[[], Components]] = {
    "stable diffusion": stable_diffusion,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "lumina": lumina,
    "lumina2": lumina2,
    "sana": sana,
}


def build_small(family: str, dtype: torch.dtype) -> Components:
    """Build the small model of a family in ``dtype``, the same weights each time."""
    torch.manual_seed(0)
    components = FAMILIES[family]()
    for name in ("unet", "transformer", "vae"):
        if name in components:
            randomize(components[name])
    return {key: part.to(dtype) if isinstance(part, torch.nn.Module) else part for key, part in components.items()}


def randomize(module: torch.nn.Module) -> None:
    """Draw all weights at random: layers that training starts at zero would hide what passes through them."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.2)
