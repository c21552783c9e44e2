"""SANA-Sprint: one to four steps by continuous-time consistency distillation (Chen et al., arXiv 2503.09641).

Its schedule is TrigFlow's, x = cos(θ)·z + sin(θ)·ε, and its prediction F gives D = cos(θ)·x − sin(θ)·F: v-prediction with
a = cos(θ) and b = sin(θ). The transformer inside was trained with flow matching and sees that flow's time and scale.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from engine.models.architectures.base import Architecture, Condition
from engine.models.controls import Controls

#: Tokens of a prompt that the denoiser sees.
LENGTH = 300


class SanaSprint(Architecture):
    """A linear-attention transformer over DC-AE latents (factor 32), Gemma tokens under a mask, guidance built in."""

    title, needs, lora_mixin = "SANA-Sprint", ("text_encoder", "tokenizer"), "SanaLoraLoaderMixin"

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import SanaSprintPipeline

        super().__init__(parts, device, dtype)
        self.built_in = 4.5 if self.denoiser.config["guidance_embeds"] else 0.0
        parts["tokenizer"].padding_side = "right"
        # The instruction that the text encoder reads first is part of the checkpoint's protocol, as diffusers keeps it.
        asked = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
        self.instruction = "\n".join(asked)
        self._length = len(parts["tokenizer"].encode(self.instruction)) + LENGTH - 2

    @torch.inference_mode()
    def encode_prompt(self, text: str) -> Condition:
        found = self.tokens("tokenizer", self.instruction + text.lower().strip(), self._length)
        states = self.parts["text_encoder"](found.input_ids, attention_mask=found.attention_mask)[0]
        # The first token and the last ones: the instruction itself is left out (section 3.1 of the paper on SANA).
        seen = torch.tensor([0, *range(self._length - LENGTH + 1, self._length)], device=self.device)
        return Condition(states[:, seen], mask=found.attention_mask[:, seen])

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        time = self.kept.get(lambda: _flow_time(t), "t", t)
        s = time.view(-1, 1, 1, 1)
        scale = (s**2 + (1 - s) ** 2).sqrt()
        scaled = x.float() * scale
        strength = self.scale(
            (guidance or self.built_in) * float(self.denoiser.config["guidance_embeds_scale"]), len(x)
        )
        output = self.run(
            scaled.to(self.dtype),
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask,
            guidance=None if strength is None else self.kept.get(lambda: strength.to(self.dtype), "strength", strength),
            timestep=time,
            return_dict=False,
        )[0]
        return ((1 - 2 * s) * scaled + (1 - 2 * s + 2 * s**2) * output.float()) / scale


def _flow_time(t: Tensor) -> Tensor:
    """The flow's σ of the same signal-to-noise ratio as TrigFlow's timesteps ``t``, 0..1000 for θ = 0..π/2."""
    angle = t.float() * (math.pi / 2000)
    return angle.sin() / (angle.cos() + angle.sin())
