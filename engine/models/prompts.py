"""Prompts to conditions, for one CLIP text encoder (SD) or two (SDXL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.models.model import Condition


def prompt_encoder(parts: dict[str, Any], device: torch.device) -> Callable[[str], Condition]:
    """A function from a text to its ``Condition``: padded and truncated to the tokenizer's length."""

    def tokens(tokenizer: Any, text: str) -> Tensor:
        length = tokenizer.model_max_length
        return tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids.to(device)

    @torch.inference_mode()
    def one(text: str) -> Condition:
        return Condition(parts["text_encoder"](tokens(parts["tokenizer"], text)).last_hidden_state)

    @torch.inference_mode()
    def two(text: str) -> Condition:
        # SDXL: the penultimate layers of both side by side, and the second encoder's pooled projection.
        first = parts["text_encoder"](tokens(parts["tokenizer"], text), output_hidden_states=True)
        second = parts["text_encoder_2"](tokens(parts["tokenizer_2"], text), output_hidden_states=True)
        return Condition(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second[0])

    return two if "text_encoder_2" in parts else one
