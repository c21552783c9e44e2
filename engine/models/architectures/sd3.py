"""Stable Diffusion 3 and 3.5: a multimodal transformer trained with flow matching (Esser et al., arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.regional.base import TokenChoice
from engine.models.regional.sd3 import RegionalSD3

#: Length of a prompt in T5 tokens.
T5_TOKENS = 256


class StableDiffusion3(Architecture):
    """Stable Diffusion 3: two CLIP encoders and T5. Without T5 its tokens are zeros, as in training."""

    title, denoiser_class = "Stable Diffusion 3", "SD3Transformer2DModel"
    patch, lora_mixin, tiny_autoencoder = 2, "SD3LoraLoaderMixin", "madebyollin/taesd3"
    single_file_pipeline, single_file_key = "StableDiffusion3Pipeline", "model.diffusion_model.joint_blocks."
    required_components: tuple[str, ...] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    regional_transformer = RegionalSD3

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        length = self.components["tokenizer"].model_max_length
        outputs = [
            self.components["text_encoder" + suffix](
                self.tokenize("tokenizer" + suffix, text, length).input_ids, output_hidden_states=True
            )
            for suffix in ("", "_2")
        ]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        width = int(self.denoiser.config["joint_attention_dim"])
        if "text_encoder_3" in self.components:
            t5 = self.components["text_encoder_3"](self.tokenize("tokenizer_3", text, T5_TOKENS).input_ids)[0]
        else:
            t5 = clip.new_zeros(1, T5_TOKENS, width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return Condition(torch.cat([clip, t5], 1), torch.cat([output[0] for output in outputs], -1))

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        return self.compiled_denoiser(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        assert self.compiled_regions is not None
        return self.compiled_regions(
            x, t, condition.tokens, condition.pooled, choice.active, choice.cache, choice.with_text
        )


class PocketTransformer(StableDiffusion3):
    """The pocket transformer: one CLIP encoder, whose last layer is attended to and whose pooled text modulates."""

    title = "Phosphene pocket transformer"
    single_file_pipeline = single_file_key = ""
    tiny_autoencoder = ""
    required_components = ("text_encoder", "tokenizer")

    @classmethod
    def matches(cls, components: Mapping[str, Any]) -> bool:
        if not super().matches(components) or "text_encoder_2" in components or "text_encoder" not in components:
            return False
        width = getattr(components["text_encoder"].config, "hidden_size", 0)
        return bool(width == components[cls.denoiser_component].config["joint_attention_dim"])

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        output = self.components["text_encoder"](self.tokenize("tokenizer", text).input_ids)
        return Condition(output.last_hidden_state, output.pooler_output)
