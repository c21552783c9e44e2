"""Stable Diffusion 1.5, 2.1, Turbo and LCM with one CLIP text encoder; SDXL and its Turbo, Lightning and LCM forms with two."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controls import Controls


class StableDiffusion(Architecture):
    """A U-Net with cross attention to one text encoder's last hidden state (Rombach et al., arXiv 2112.10752)."""

    title, part = "Stable Diffusion", "unet"
    needs: tuple[str, ...] = ("text_encoder", "tokenizer")
    controllable = True
    lora_mixin = "StableDiffusionLoraLoaderMixin"

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(parts, device, dtype)
        self.built_in = 8.0 if self.denoiser.config.get("time_cond_proj_dim") else 0.0

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        return Condition(self.parts["text_encoder"](self.tokens("tokenizer", text).input_ids).last_hidden_state)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        extra: dict[str, Any] = self.added(x, condition)
        if controls is not None:
            extra |= controls.residuals(x, t, condition.tokens, dict(extra))
        if self.built_in:
            scale = guidance or self.built_in
            extra["timestep_cond"] = self.kept.get(
                lambda: self._embedded(scale).expand(len(x), -1), "scale", scale, len(x)
            )
        return self.run(x, t, condition.tokens, return_dict=False, **extra)[0]

    def added(self, x: Tensor, condition: Condition) -> dict[str, Any]:
        """What the denoiser takes beside the tokens."""
        return {}

    def _embedded(self, guidance: float) -> Tensor:
        """The embedding of w = guidance − 1 that a guidance-distilled consistency model takes (arXiv 2310.04378), (1, width)."""
        half = int(self.denoiser.config["time_cond_proj_dim"]) // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        angles = (guidance - 1.0) * 1000.0 * frequencies
        return torch.cat([angles.sin(), angles.cos()])[None].to(self.device, self.dtype)


class StableDiffusionXL(StableDiffusion):
    """A larger U-Net with two text encoders, a pooled text and the picture's size as added conditions (arXiv 2307.01952)."""

    title, needs = "SDXL", ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    lora_mixin = "StableDiffusionXLLoraLoaderMixin"

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(parts, device, dtype)
        if parts.get("index", {}).get("force_zeros_for_empty_prompt", True):
            self.encode_negative = self._zeros_or_text

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        # The penultimate layers of both encoders side by side, and the second one's pooled projection.
        first = self.parts["text_encoder"](self.tokens("tokenizer", text).input_ids, output_hidden_states=True)
        second = self.parts["text_encoder_2"](self.tokens("tokenizer_2", text).input_ids, output_hidden_states=True)
        return Condition(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second[0])

    def _zeros_or_text(self, text: str) -> Condition:
        """An empty negative prompt is all zeros, as these checkpoints were trained."""
        condition = self.encode_prompt(text)
        return condition if text else condition.map(torch.zeros_like)

    def added(self, x: Tensor, condition: Condition) -> dict[str, Any]:
        height, width = x.shape[-2] * 8, x.shape[-1] * 8

        def size() -> Tensor:
            told = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
            return told.expand(len(x), -1)

        return {
            "added_cond_kwargs": {
                "text_embeds": condition.pooled,
                "time_ids": self.kept.get(size, "size", height, width, len(x)),
            }
        }
