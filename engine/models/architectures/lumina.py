"""Lumina-Next (arXiv 2406.18583) and Lumina-Image 2.0 (arXiv 2503.21758): flow transformers under a Gemma text encoder.

Both count time from noise (0) to picture (1) and predict the way to the picture: the sign turns at this border.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controls import Controls


class LuminaNext(Architecture):
    """Lumina-Next-DiT: the penultimate Gemma layer under a mask, rotary places made for the picture's size."""

    title, needs, patch = "Lumina-Next", ("text_encoder", "tokenizer"), 2
    length = 256

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(parts, device, dtype)
        parts["tokenizer"].padding_side = "right"
        self._side = int(self.denoiser.config["sample_size"]) * 8

    def encode_prompt(self, text: str) -> Condition:
        return self.penultimate(text.lower().strip())

    @torch.inference_mode()
    def penultimate(self, text: str) -> Condition:
        """The text encoder's last hidden layer but one, with its mask."""
        found = self.tokens("tokenizer", text, self.length)
        states = self.parts["text_encoder"](
            found.input_ids, attention_mask=found.attention_mask, output_hidden_states=True
        )
        return Condition(states.hidden_states[-2], mask=found.attention_mask)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        output = self.run(
            hidden_states=x,
            timestep=self.kept.get(lambda: 1 - t / 1000, "t", t),
            encoder_hidden_states=condition.tokens,
            encoder_mask=condition.mask,
            image_rotary_emb=self._places(x.shape[-2] * x.shape[-1] * 64),
            cross_attention_kwargs={"base_sequence_length": (self._side // 16) ** 2},
            return_dict=False,
        )[0]
        return -output.chunk(2, 1)[0]  # the other half is a learned variance

    def _places(self, area: int) -> Tensor:
        """Rotary places of the grid's cells, stretched for ``area`` pixels from the size that the checkpoint was trained at."""
        stretch = math.sqrt(area) / self._side

        def made() -> Tensor:
            from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

            places = get_2d_rotary_pos_embed_lumina(
                self.denoiser.head_dim, 384, 384, linear_factor=stretch, ntk_factor=1.0
            )
            return places.to(self.device)

        return self.kept.get(made, "places", stretch)


class Lumina2(LuminaNext):
    """Lumina-Image 2.0: prompt and picture in one sequence, after a fixed instruction."""

    title, lora_mixin = "Lumina-Image 2.0", "Lumina2LoraLoaderMixin"
    instruction = (
        "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
        "based on textual prompts or user prompts. <Prompt Start> "
    )

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        Architecture.__init__(self, parts, device, dtype)
        parts["tokenizer"].padding_side = "right"
        self.encode_negative = self.penultimate  # without the instruction

    def encode_prompt(self, text: str) -> Condition:
        return self.penultimate(self.instruction + text)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        return -self.run(
            hidden_states=x,
            timestep=self.kept.get(lambda: 1 - t / 1000, "t", t),
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]
