"""Stable Diffusion 3 and 3.5: a multimodal transformer trained with flow matching (Esser et al., arXiv 2403.03206)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controls import Controls

#: T5 tokens of a prompt.
LENGTH = 256


class StableDiffusion3(Architecture):
    """Two CLIP encoders side by side, then T5; without a T5 its tokens are zeros, as the checkpoint was trained to take."""

    title, patch = "Stable Diffusion 3", 2
    lora_mixin = "SD3LoraLoaderMixin"
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        length = self.parts["tokenizer"].model_max_length
        sides = [
            self.parts["text_encoder" + n](
                self.tokens("tokenizer" + n, text, length).input_ids, output_hidden_states=True
            )
            for n in ("", "_2")
        ]
        clip = torch.cat([side.hidden_states[-2] for side in sides], -1)
        width = int(self.denoiser.config["joint_attention_dim"])
        if "text_encoder_3" in self.parts:
            t5 = self.parts["text_encoder_3"](self.tokens("tokenizer_3", text, LENGTH).input_ids)[0]
        else:
            t5 = clip.new_zeros(1, LENGTH, width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return Condition(torch.cat([clip, t5], 1), torch.cat([side[0] for side in sides], -1))

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        return self.run(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
