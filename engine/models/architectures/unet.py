"""U-Nets: Stable Diffusion 1.5, 2.1, Turbo and LCM with one text encoder, SDXL, its Turbo and Lightning with two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import CompiledModule
from engine.models.architectures.base import Architecture, Condition
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.regional.unet import DeepCachedUNet


class StableDiffusion(Architecture):
    """Stable Diffusion: a U-Net with cross attention to a CLIP encoder's last hidden state (arXiv 2112.10752)."""

    title, denoiser_class, denoiser_component = "Stable Diffusion", "UNet2DConditionModel", "unet"
    required_components: tuple[str, ...] = ("text_encoder", "tokenizer")
    supports_controlnet, half_dtype, caches_deep_features = True, torch.float16, True
    lora_mixin, tiny_autoencoder = "StableDiffusionLoraLoaderMixin", "madebyollin/taesd"
    single_file_pipeline, single_file_key = "StableDiffusionPipeline", "model.diffusion_model.input_blocks."

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(components, device, dtype)
        self.default_guidance_scale = 8.0 if self.denoiser.config.get("time_cond_proj_dim") else 0.0
        self.compiled_regions = CompiledModule("regions", DeepCachedUNet(self.denoiser))

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        return Condition(self.components["text_encoder"](self.tokenize("tokenizer", text).input_ids).last_hidden_state)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        extra = self.added_conditions(x, condition)
        if controlnets is not None:
            extra |= controlnets.residuals(x, t, condition.tokens, dict(extra))
        extra |= self._guidance_condition(guidance, len(x))
        return self.compiled_denoiser(x, t, condition.tokens, return_dict=False, **extra)[0]

    def denoise_shallow(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        extra = self.added_conditions(x, condition) | self._guidance_condition(guidance, len(x))
        assert self.compiled_regions is not None
        return self.compiled_regions(x, t, condition.tokens, deep, **extra)

    def _guidance_condition(self, guidance: float, rows: int) -> dict[str, Tensor]:
        """Return the keyword argument of a guidance-distilled model; none for any other."""
        if not self.default_guidance_scale:
            return {}
        scale = guidance or self.default_guidance_scale
        return {
            "timestep_cond": self.memo.get(lambda: self._embed_guidance(scale).expand(rows, -1), "scale", scale, rows)
        }

    def added_conditions(self, x: Tensor, condition: Condition) -> dict[str, Any]:
        """Return the keyword arguments that the denoiser takes besides the tokens."""
        return {}

    def _embed_guidance(self, guidance: float) -> Tensor:
        """Return the embedding (1, width) of w = guidance − 1 for latent consistency models (arXiv 2310.04378)."""
        half = int(self.denoiser.config["time_cond_proj_dim"]) // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        angles = (guidance - 1.0) * 1000.0 * frequencies
        return torch.cat([angles.sin(), angles.cos()])[None].to(self.device, self.dtype)


class StableDiffusionXL(StableDiffusion):
    """SDXL: a larger U-Net, two text encoders, pooled text and picture size as added conditions (arXiv 2307.01952)."""

    title, required_components = "SDXL", ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    lora_mixin, tiny_autoencoder = "StableDiffusionXLLoraLoaderMixin", "madebyollin/taesdxl"
    single_file_pipeline, single_file_key = "StableDiffusionXLPipeline", "conditioner.embedders.1."

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(components, device, dtype)
        if components.get("index", {}).get("force_zeros_for_empty_prompt", True):
            self.encode_negative = self._encode_negative

    @classmethod
    def matches(cls, components: Mapping[str, Any]) -> bool:
        return super().matches(components) and "text_encoder_2" in components

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        # The penultimate layers of both encoders, concatenated, and the second one's pooled projection.
        first, second = (
            self.components["text_encoder" + suffix](
                self.tokenize("tokenizer" + suffix, text).input_ids, output_hidden_states=True
            )
            for suffix in ("", "_2")
        )
        return Condition(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second[0])

    def _encode_negative(self, text: str) -> Condition:
        """Encode an empty negative prompt as zeros, as these checkpoints were trained."""
        condition = self.encode_prompt(text)
        return condition if text else condition.map(torch.zeros_like)

    def added_conditions(self, x: Tensor, condition: Condition) -> dict[str, Any]:
        height, width = x.shape[-2] * 8, x.shape[-1] * 8

        def time_ids() -> Tensor:
            ids = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
            return ids.expand(len(x), -1)

        return {
            "added_cond_kwargs": {
                "text_embeds": condition.pooled,
                "time_ids": self.memo.get(time_ids, "size", height, width, len(x)),
            }
        }
