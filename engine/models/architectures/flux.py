"""FLUX.1 (schnell, dev) and FLUX.2 klein: rectified-flow transformers over packed 2×2 latents (Black Forest Labs)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controls import Controls

#: Hidden layers of FLUX.2's text encoder that make the condition, side by side.
LAYERS = (9, 18, 27)


class Flux(Architecture):
    """CLIP's pooled text steers the layers, T5's tokens stand beside the picture's. Latents stay (rows, 16, h, w) outside."""

    title, patch, lora_mixin = "FLUX.1", 2, "FluxLoraLoaderMixin"
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(parts, device, dtype)
        self.built_in = 3.5 if self.denoiser.config["guidance_embeds"] else 0.0

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        pooled = self.parts["text_encoder"](self.tokens("tokenizer", text).input_ids).pooler_output
        return Condition(self.parts["text_encoder_2"](self.tokens("tokenizer_2", text).input_ids)[0], pooled)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        rows, _, height, width = x.shape
        packed = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        output = self.run(
            hidden_states=packed,
            timestep=self.kept.get(lambda: t / 1000, "t", t),
            guidance=self.scale(guidance, rows),
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.tokens,
            txt_ids=self.kept.get(lambda: x.new_zeros(condition.tokens.shape[1], 3), "text", condition.tokens.shape[1]),
            img_ids=self._places(height // 2, width // 2),
            return_dict=False,
        )[0]
        return torch.nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)

    def _places(self, height: int, width: int) -> Tensor:
        """(height · width, 3): nought, row and column of each token."""

        def made() -> Tensor:
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            return torch.stack([torch.zeros_like(y), y, x], -1).flatten(0, 1).to(self.device, self.dtype)

        return self.kept.get(made, "places", height, width)


class Flux2(Architecture):
    """FLUX.2 klein: three layers of a Qwen3 encoder as text, latents patched and normalised by the autoencoder's side."""

    title, needs, lora_mixin = "FLUX.2 klein", ("text_encoder", "tokenizer"), "Flux2LoraLoaderMixin"
    #: Tokens of a prompt.
    length = 512

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(parts, device, dtype)
        self.built_in = 4.0 if self.denoiser.config["guidance_embeds"] else 0.0

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        said = [{"role": "user", "content": text}]
        whole = self.parts["tokenizer"].apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        found = self.tokens("tokenizer", whole, self.length)
        encoder = self.parts["text_encoder"]
        states = encoder(
            input_ids=found.input_ids, attention_mask=found.attention_mask, output_hidden_states=True, use_cache=False
        )
        return Condition(torch.cat([states.hidden_states[layer] for layer in LAYERS], -1))

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        rows, _, height, width = x.shape
        output = self.run(
            hidden_states=x.flatten(2).transpose(1, 2),
            timestep=self.kept.get(lambda: t / 1000, "t", t),
            guidance=self.scale(guidance, rows),
            encoder_hidden_states=condition.tokens,
            txt_ids=self._places(rows, 1, 1, condition.tokens.shape[1]),
            img_ids=self._places(rows, height, width, 1),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))

    def _places(self, rows: int, height: int, width: int, length: int) -> Tensor:
        """(rows, height · width · length, 4): time, row, column and place in the text of each token."""

        def made() -> Tensor:
            sides = (torch.arange(side) for side in (1, height, width, length))
            return torch.cartesian_prod(*sides)[None].expand(rows, -1, -1).to(self.device)

        return self.kept.get(made, "places", rows, height, width, length)
