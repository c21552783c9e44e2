"""Components of a model to measure: a checkpoint's, or a known architecture's with random weights, equally fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.models.architectures import Architecture, find_architecture
from engine.models.checkpoint import BUILT_IN, POCKET, load_components, peek_architecture, resolve
from engine.models.precision import Precision
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

Components = dict[str, Any]
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def _clip(width: int, layers: int, heads: int, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection or width,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    tokenizer.model_max_length = 77
    return tokenizer


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, **settings)


def sd15() -> Components:
    """Build Stable Diffusion 1.5: a U-Net of 860 million weights, with the tiny autoencoder."""
    from diffusers import AutoencoderTiny

    unet = _unet(cross_attention_dim=768, attention_head_dim=8)
    return {
        "unet": unet,
        "vae": AutoencoderTiny(),
        "text_encoder": _clip(768, 12, 12),
        "tokenizer": _tokenizer(),
        "scheduler": {"_class_name": "LCMScheduler", **NOISE_SCHEDULE},
        "index": {"_class_name": "StableDiffusionPipeline"},
    }


def sd_turbo() -> Components:
    """Build SD-Turbo, which is Stable Diffusion 2.1: a U-Net of 866 million weights, with the tiny autoencoder."""
    unet = _unet(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    scheduler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", **NOISE_SCHEDULE}
    return sd15() | {"unet": unet, "text_encoder": _clip(1024, 23, 16), "scheduler": scheduler}


def sdxl_turbo() -> Components:
    """Build SDXL-Turbo: a U-Net of 2.6 billion weights, with the tiny autoencoder."""
    from diffusers import AutoencoderTiny

    unet = _unet(
        cross_attention_dim=2048, attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    scheduler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", **NOISE_SCHEDULE}
    return {
        "unet": unet,
        "vae": AutoencoderTiny(),
        "text_encoder": _clip(768, 12, 12),
        "text_encoder_2": _clip(1280, 32, 20, 1280),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "scheduler": scheduler,
        "index": {"_class_name": "StableDiffusionXLPipeline"},
    }


def sd3(layers: int = 24, text_layers: tuple[int, int] = (12, 32)) -> Components:
    """Build Stable Diffusion 3 medium: a transformer of 2 billion weights, without T5, with the tiny autoencoder."""
    from diffusers import AutoencoderTiny, SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=128, num_layers=layers, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, in_channels=16, out_channels=16,
        pos_embed_max_size=192,
    )  # fmt: skip
    vae = AutoencoderTiny(latent_channels=16, shift_factor=0.0)
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": _clip(768, text_layers[0], 12, 768),
        "text_encoder_2": _clip(1280, text_layers[1], 20, 1280),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000},
        "index": {"_class_name": "StableDiffusion3Pipeline"},
    }


ARCHITECTURES: dict[str, Callable[[], Components]] = {
    "sd15": sd15,
    "sd-turbo": sd_turbo,
    "sdxl-turbo": sdxl_turbo,
    "sd3": sd3,
}
#: Working size of models that is not 512.
WORKING_SIDES = dict.fromkeys(BUILT_IN, 256)


def find_architecture_of(name: str, options: EngineOptions) -> type[Architecture] | None:
    """Return the architecture of what ``build_components`` builds, None if it is not supported."""
    if name not in ARCHITECTURES:
        return peek_architecture(resolve(name, options))
    with torch.device("meta"):
        return find_architecture(ARCHITECTURES[name]())


def build_components(name: str, dtype: torch.dtype, device: torch.device, options: EngineOptions) -> Components:
    """Build an architecture with random weights, or load the checkpoint called ``name``.

    Raises InvalidValue where there is neither.
    """
    if name not in ARCHITECTURES:
        return load_components(resolve(name, options), Precision(dtype, dtype), options)
    torch.manual_seed(0)  # the same weights in every process
    with torch.device(device):
        components = ARCHITECTURES[name]()
    return {key: part.to(dtype) if isinstance(part, torch.nn.Module) else part for key, part in components.items()}


def build_pipeline(components: Components, device: torch.device) -> Any:
    """Build diffusers' ``AutoPipelineForImage2Image`` on the same components. Raises InvalidValue where it has none."""
    import diffusers

    settings = components["scheduler"]
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    arguments = {name: part for name, part in components.items() if name not in ("scheduler", "index")}
    pipeline_class = getattr(diffusers, components["index"]["_class_name"])
    further_encoders = [f"{component}_{number}" for component in ("text_encoder", "tokenizer") for number in (2, 3)]
    for name in ("safety_checker", "feature_extractor", *further_encoders):
        if name in pipeline_class.__init__.__annotations__ and name not in arguments:
            arguments[name] = None
    if pipeline_class.__name__ == "StableDiffusionPipeline":
        arguments["requires_safety_checker"] = False
    try:
        pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(pipeline_class(scheduler=scheduler, **arguments))
    except ValueError as error:
        raise InvalidValue(f"diffusers has no image-to-image pipeline for {pipeline_class.__name__}: {error}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
