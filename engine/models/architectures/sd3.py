"""Stable Diffusion 3 and 3.5: a multimodal transformer trained with flow matching (Esser et al., arXiv 2403.03206)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controlnet_inputs import ControlNetInputs

#: Length of a prompt in T5 tokens.
T5_TOKENS = 256


class StableDiffusion3(Architecture):
    """Stable Diffusion 3: two CLIP encoders and T5. Without T5 its tokens are zeros, as in training."""

    title, denoiser_class = "Stable Diffusion 3", "SD3Transformer2DModel"
    patch, lora_mixin, tiny_autoencoder = 2, "SD3LoraLoaderMixin", "madebyollin/taesd3"
    single_file_pipeline, single_file_key = "StableDiffusion3Pipeline", "model.diffusion_model.joint_blocks."
    required_components = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

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
