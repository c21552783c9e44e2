"""What a family of models is to the stream: a prompt encoder and one denoiser call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import CompiledModule
from engine.models.controls import Controls
from engine.runtime.memo import Memo


@dataclass(frozen=True)
class Condition:
    """A prompt as a denoiser takes it, one row or several.

    ``tokens`` (B, length, width), ``pooled`` (B, width) and ``mask`` (B, length), 1 where a token counts, where the family has them.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with each of its tensors changed."""
        pooled = None if self.pooled is None else change(self.pooled)
        return Condition(change(self.tokens), pooled, None if self.mask is None else change(self.mask))

    def rows(self, count: int) -> Condition:
        """One row said for ``count`` rows; a condition of ``count`` rows as it is."""
        if len(self.tokens) == count:
            return self
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def joined(parts: list[Condition]) -> Condition:
        """The rows of several conditions of one family below each other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        tokens = torch.cat([part.tokens for part in parts])
        return Condition(tokens, torch.cat(pooled) if pooled else None, torch.cat(masks) if masks else None)


class Architecture(ABC):
    """An architecture with its parts loaded. ``denoise`` answers in the terms of its schedule's ``prediction``.

    ``patch`` is the side of the latent square that one token holds, ``built_in`` the guidance scale that a model distilled
    from guidance was made for (0: it takes none). ``encode_negative`` is None where a negative prompt reads as any other.
    ``controllable`` families take ControlNets, image prompts and the memory of earlier frames; ``lora_mixin`` is the class
    of diffusers that knows their LoRA files. ``run`` is the denoiser as ``denoise`` calls it, ``kept`` what it is given beside the picture:
    from tick to tick the same tensors, so that what follows from them need not be computed again.
    """

    title = ""
    part = "transformer"
    needs: tuple[str, ...] = ()
    patch = 1
    built_in = 0.0
    controllable = False
    lora_mixin = ""
    encode_negative: Callable[[str], Condition] | None = None

    def __init__(self, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        self.parts, self.device, self.dtype = parts, device, dtype
        self.denoiser = parts[self.part]
        self.run = CompiledModule("denoiser", self.denoiser)
        self.kept: Memo[Tensor] = Memo()

    @abstractmethod
    def encode_prompt(self, text: str) -> Condition:
        """A text as one row of condition: padded and truncated to the tokenizer's length."""

    @abstractmethod
    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controls: Controls | None = None
    ) -> Tensor:
        """One denoiser call: x (rows, C, h, w), t (rows,), a condition of as many rows → the raw output (rows, C, h, w).

        ``controls`` only where the family is ``controllable``.
        """

    def scale(self, guidance: float, rows: int) -> Tensor | None:
        """The guidance scale as a model that has it built in takes it, (rows,) float32; None for one that has not."""
        if not self.built_in:
            return None
        scale = guidance or self.built_in
        return self.kept.get(lambda: torch.full((rows,), scale, device=self.device), "scale", scale, rows)

    def tokens(self, tokenizer: str, text: str, length: int | None = None, **options: Any) -> Any:
        """Ids and mask of ``text`` under one of the tokenizers, on the device, (1, length) each."""
        tokenize = self.parts[tokenizer]
        length = length or tokenize.model_max_length
        found = tokenize(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **options)
        return found.to(self.device)
