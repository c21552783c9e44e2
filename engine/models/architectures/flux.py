"""FLUX.1 (schnell, dev) and FLUX.2 klein: rectified-flow transformers over packed 2×2 latents (Black Forest Labs)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.regional.base import TokenChoice
from engine.models.regional.flux import RegionalFlux
from engine.models.regional.flux2 import RegionalFlux2

#: Hidden layers of FLUX.2's text encoder whose states are concatenated to the condition.
TEXT_LAYERS = (9, 18, 27)


class Flux(Architecture):
    """FLUX.1: CLIP's pooled text modulates the layers, T5's tokens are attended to. Latents are (rows, 16, h, w)."""

    title, denoiser_class = "FLUX.1", "FluxTransformer2DModel"
    patch, lora_mixin, tiny_autoencoder = 2, "FluxLoraLoaderMixin", "madebyollin/taef1"
    required_components = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    regional_transformer = RegionalFlux

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(components, device, dtype)
        self.default_guidance_scale = 3.5 if self.denoiser.config["guidance_embeds"] else 0.0

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        pooled = self.components["text_encoder"](self.tokenize("tokenizer", text).input_ids).pooler_output
        return Condition(self.components["text_encoder_2"](self.tokenize("tokenizer_2", text).input_ids)[0], pooled)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        height, width = (side // 2 for side in x.shape[2:])
        packed = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        inputs = self._inputs(x, t, condition, guidance)
        output = self.compiled_denoiser(hidden_states=packed, **inputs, return_dict=False)[0]
        return torch.nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), 2)

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        assert self.compiled_regions is not None
        inputs = self._inputs(x, t, condition, guidance)
        return self.compiled_regions(x, **inputs, **vars(choice))

    def _inputs(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> dict[str, Tensor | None]:
        """Return the denoiser's inputs apart from the latents x (rows, C, h, w)."""
        rows, _, height, width = x.shape
        length = condition.tokens.shape[1]
        return {
            "timestep": self.memo.get(lambda: t / 1000, "t", t),
            "guidance": self.guidance_input(guidance, rows),
            "pooled_projections": condition.pooled,
            "encoder_hidden_states": condition.tokens,
            "txt_ids": self.memo.get(lambda: x.new_zeros(length, 3), "text", length),
            "img_ids": self._position_ids(height // 2, width // 2),
        }

    def _position_ids(self, height: int, width: int) -> Tensor:
        """Return (height · width, 3): zero, row and column of each token."""

        def build() -> Tensor:
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            return torch.stack([torch.zeros_like(y), y, x], -1).flatten(0, 1).to(self.device, self.dtype)

        return self.memo.get(build, "position_ids", height, width)


class Flux2(Architecture):
    """FLUX.2 klein: three layers of a Qwen3 encoder as text; the codec patches and normalizes the latents."""

    title, denoiser_class = "FLUX.2 klein", "Flux2Transformer2DModel"
    required_components, lora_mixin = ("text_encoder", "tokenizer"), "Flux2LoraLoaderMixin"
    regional_transformer = RegionalFlux2
    #: Length of a prompt in tokens.
    length = 512

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(components, device, dtype)
        self.default_guidance_scale = 4.0 if self.denoiser.config["guidance_embeds"] else 0.0

    @staticmethod
    def dynamic_shift(tokens: int, steps: int) -> float:
        """Return the flow's shift e^μ for a number of tokens and steps.

        The checkpoint's authors measured μ as a line in the number of tokens at 10 and at 200 steps; it is
        interpolated between the two.
        """
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return math.exp(at_200)
        at_10 = 8.73809524e-05 * tokens + 1.89833333
        return math.exp(at_200 + (at_200 - at_10) / 190.0 * (steps - 200.0))

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        messages = [{"role": "user", "content": text}]
        prompt = self.components["tokenizer"].apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        encoded = self.tokenize("tokenizer", prompt, self.length)
        encoder = self.components["text_encoder"]
        states = encoder(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        return Condition(torch.cat([states.hidden_states[layer] for layer in TEXT_LAYERS], -1))

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        inputs = self._inputs(x, t, condition, guidance)
        output = self.compiled_denoiser(hidden_states=x.flatten(2).transpose(1, 2), **inputs, return_dict=False)[0]
        return output.transpose(1, 2).unflatten(2, x.shape[2:])

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        assert self.compiled_regions is not None
        inputs = self._inputs(x, t, condition, guidance)
        return self.compiled_regions(x, **inputs, **vars(choice))

    def _inputs(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> dict[str, Tensor | None]:
        """Return the denoiser's inputs apart from the latents x (rows, C, h, w)."""
        rows, _, height, width = x.shape
        return {
            "timestep": self.memo.get(lambda: t / 1000, "t", t),
            "guidance": self.guidance_input(guidance, rows),
            "encoder_hidden_states": condition.tokens,
            "txt_ids": self._position_ids(rows, 1, 1, condition.tokens.shape[1]),
            "img_ids": self._position_ids(rows, height, width, 1),
        }

    def _position_ids(self, rows: int, height: int, width: int, length: int) -> Tensor:
        """Return (rows, height · width · length, 4): time, row, column and text position of each token."""

        def build() -> Tensor:
            sides = (torch.arange(side) for side in (1, height, width, length))
            return torch.cartesian_prod(*sides)[None].expand(rows, -1, -1).to(self.device)

        return self.memo.get(build, "position_ids", rows, height, width, length)
