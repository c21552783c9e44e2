"""SANA-Sprint: one to four steps by continuous-time consistency distillation (Chen et al., arXiv 2503.09641).

Its schedule is TrigFlow's, x = cos(θ)·z + sin(θ)·ε, and its prediction F gives D = cos(θ)·x − sin(θ)·F. That is
v-prediction with a = cos(θ) and b = sin(θ). The transformer was trained with flow matching: its input and output are
converted to that flow's time and scale.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controlnet_inputs import ControlNetInputs

#: Length of a prompt, as the denoiser sees it, in tokens.
PROMPT_TOKENS = 300


class SanaSprint(Architecture):
    """SANA-Sprint: linear attention over DC-AE latents (factor 32), Gemma tokens under a mask, guidance-distilled."""

    title, denoiser_class = "SANA-Sprint", "SanaTransformer2DModel"
    required_components, lora_mixin = ("text_encoder", "tokenizer"), "SanaLoraLoaderMixin"

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import SanaSprintPipeline

        super().__init__(components, device, dtype)
        self.default_guidance_scale = 4.5 if self.denoiser.config["guidance_embeds"] else 0.0
        components["tokenizer"].padding_side = "right"
        # The checkpoint was trained with this instruction before each prompt; diffusers ships its text.
        lines = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
        self.instruction = "\n".join(lines)
        self._length = len(components["tokenizer"].encode(self.instruction)) + PROMPT_TOKENS - 2

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        encoded = self.tokenize("tokenizer", self.instruction + text.lower().strip(), self._length)
        states = self.components["text_encoder"](encoded.input_ids, attention_mask=encoded.attention_mask)[0]
        # The first token and the last ones, without the instruction (section 3.1 of the SANA paper, arXiv 2410.10629).
        visible = torch.tensor([0, *range(self._length - PROMPT_TOKENS + 1, self._length)], device=self.device)
        return Condition(states[:, visible], mask=encoded.attention_mask[:, visible])

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        time = self.memo.get(lambda: _flow_time(t), "t", t)
        s = time.view(-1, 1, 1, 1)
        scale = (s**2 + (1 - s) ** 2).sqrt()
        scaled = x.float() * scale
        guidance_scale = self.guidance_input(
            (guidance or self.default_guidance_scale) * float(self.denoiser.config["guidance_embeds_scale"]), len(x)
        )
        if guidance_scale is not None:
            full_precision = guidance_scale
            guidance_scale = self.memo.get(lambda: full_precision.to(self.dtype), "guidance", full_precision)
        output = self.compiled_denoiser(
            scaled.to(self.dtype),
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            guidance=guidance_scale,
            timestep=time,
            return_dict=False,
        )[0]
        return ((1 - 2 * s) * scaled + (1 - 2 * s + 2 * s**2) * output.float()) / scale


def _flow_time(t: Tensor) -> Tensor:
    """Return the flow's σ at the signal-to-noise ratio of TrigFlow's timesteps ``t``, 0..1000 for θ = 0..π/2."""
    angle = t.float() * (math.pi / 2000)
    return angle.sin() / (angle.cos() + angle.sin())
