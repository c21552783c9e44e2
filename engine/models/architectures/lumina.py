"""Lumina-Next (arXiv 2406.18583) and Lumina-Image 2.0 (arXiv 2503.21758): flow transformers under a Gemma text encoder.

Both count time from noise (0) to picture (1) and predict the velocity towards the picture. Time and sign are flipped
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import CPU, Architecture, Condition
from engine.models.architectures.lumina_positions import MemoisedPositions
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.regional.base import RegionalTransformer, TokenChoice
from engine.models.regional.lumina import RegionalLuminaNext
from engine.models.regional.lumina2 import RegionalLumina2


class LuminaNext(Architecture):
    """Lumina-Next-DiT: the penultimate Gemma layer under a mask, rotary embeddings scaled to the picture's size."""

    title, denoiser_class = "Lumina-Next", "LuminaNextDiT2DModel"
    required_components, patch = ("text_encoder", "tokenizer"), 2
    regional_transformer: type[RegionalTransformer] = RegionalLuminaNext
    #: Length of a prompt in tokens.
    length = 256

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(components, device, dtype)
        components["tokenizer"].padding_side = "right"
        self._trained_side = int(self.denoiser.config["sample_size"]) * 8
        self._trained_tokens = (self._trained_side // 16) ** 2

    def encode_prompt(self, text: str) -> Condition:
        return self._encode(text.lower().strip())

    @torch.inference_mode()
    def _encode(self, text: str) -> Condition:
        """Return the penultimate hidden layer of the text encoder, with the mask."""
        encoded = self.tokenize("tokenizer", text, self.length, device=CPU)
        lengths = tuple(encoded.attention_mask.sum(1).tolist())
        encoded = encoded.to(self.device)
        states = self.components["text_encoder"](
            encoded.input_ids, attention_mask=encoded.attention_mask, output_hidden_states=True
        )
        return Condition(states.hidden_states[-2], mask=encoded.attention_mask, lengths=lengths)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        output = self.compiled_denoiser(
            hidden_states=x,
            timestep=self._flip(t),
            encoder_hidden_states=condition.tokens,
            encoder_mask=condition.mask,
            image_rotary_emb=self._rotary_embedding(x.shape[-2] * x.shape[-1] * 64),
            cross_attention_kwargs={"base_sequence_length": self._trained_tokens},
            return_dict=False,
        )[0]
        return -output.chunk(2, 1)[0]  # the second half is a learned variance

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        assert self.compiled_regions is not None
        tokens, computed = self.compiled_regions(
            x,
            self._flip(t),
            condition.tokens,
            condition.mask,
            self._rotary_tables(x.shape[-2], x.shape[-1], len(x)),
            self._trained_tokens,
            choice.active,
            choice.cache,
            choice.with_text,
        )
        return -tokens.chunk(2, 2)[0], computed

    def _flip(self, t: Tensor) -> Tensor:
        """Return timesteps as the model counts them, from noise (0) to picture (1)."""
        return self.memo.get(lambda: 1 - t / 1000, "t", t)

    def _rotary_tables(self, height: int, width: int, rows: int) -> Tensor:
        """Return the embedding of a latent's tokens in each row as cosines and sines, (rows, N, head width)."""

        def build() -> Tensor:
            embedding = self._rotary_embedding(height * width * 64)
            tokens = embedding[: height // self.patch, : width // self.patch].flatten(0, 1)
            return torch.cat([tokens.real, tokens.imag], 1).float().repeat(rows, 1, 1)

        return self.memo.get(build, "rotary_tables", height, width, rows)

    def _rotary_embedding(self, area: int) -> Tensor:
        """Return the rotary embedding of the token grid, scaled for ``area`` pixels from the trained size."""
        scale = math.sqrt(area) / self._trained_side

        def build() -> Tensor:
            from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

            embedding = get_2d_rotary_pos_embed_lumina(
                self.denoiser.head_dim, 384, 384, linear_factor=scale, ntk_factor=1.0
            )
            return embedding.to(self.device)

        return self.memo.get(build, "rotary_embedding", scale)


class Lumina2(LuminaNext):
    """Lumina-Image 2.0: prompt and picture in one sequence, the prompt after a fixed instruction."""

    title, denoiser_class = "Lumina-Image 2.0", "Lumina2Transformer2DModel"
    lora_mixin, tiny_autoencoder = "Lumina2LoraLoaderMixin", "madebyollin/taef1"
    regional_transformer = RegionalLumina2
    instruction = (
        "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
        "based on textual prompts or user prompts. <Prompt Start> "
    )

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        Architecture.__init__(self, components, device, dtype)
        components["tokenizer"].padding_side = "right"
        self.encode_negative = self._encode  # without the instruction
        embedder = self.denoiser.rope_embedder
        self._positions = embedder if isinstance(embedder, MemoisedPositions) else MemoisedPositions(embedder)
        self.denoiser.rope_embedder = self._positions

    def encode_prompt(self, text: str) -> Condition:
        return self._encode(self.instruction + text)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        self._positions.set_lengths(condition.lengths)
        return -self.compiled_denoiser(
            hidden_states=x,
            timestep=self._flip(t),
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        assert self.compiled_regions is not None
        rotary = self._positions.rotary_tables(condition.lengths, condition.tokens.shape[1], x.shape[-2:], x.device)
        tokens, computed = self.compiled_regions(
            x, self._flip(t), condition.tokens, condition.mask, rotary, choice.active, choice.cache, choice.with_text
        )
        return -tokens, computed
