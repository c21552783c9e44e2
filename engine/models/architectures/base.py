"""Architecture: what a kind of model is to the stream, that is a prompt encoder and one denoiser call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import CompiledModule
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.regional.base import RegionalTransformer, TokenChoice
from engine.runtime.memo import Memo

#: Longest prompt that a tokenizer's config may ask for, in tokens: each is padded to that.
MAX_PROMPT_TOKENS = 4096
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Condition:
    """A prompt as a denoiser takes it, one row or several.

    ``tokens`` is (B, length, width). ``pooled``, (B, width), and ``mask``, (B, length) and 1 where a token counts, are
    None if the architecture does not use them. ``lengths`` is the number of tokens that count in each row, on the host;
    empty where no architecture asks for it.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with ``change`` applied to each of its tensors."""
        pooled = None if self.pooled is None else change(self.pooled)
        mask = None if self.mask is None else change(self.mask)
        return Condition(change(self.tokens), pooled, mask, self.lengths)

    def rows(self, count: int) -> Condition:
        """Expand one row to ``count`` rows; return a condition of ``count`` rows as it is."""
        if len(self.tokens) == count:
            return self
        expanded = self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))
        return replace(expanded, lengths=self.lengths * count)

    def select(self, rows: Sequence[int]) -> Condition:
        """Return some rows of the condition, in their order."""
        index = list(rows)
        lengths = tuple(self.lengths[row] for row in index) if self.lengths else ()
        return replace(self.map(lambda tensor: tensor[index]), lengths=lengths)

    @staticmethod
    def concatenate(conditions: Sequence[Condition]) -> Condition:
        """Concatenate the rows of several conditions of one architecture."""
        pooled = [condition.pooled for condition in conditions if condition.pooled is not None]
        masks = [condition.mask for condition in conditions if condition.mask is not None]
        tokens = torch.cat([condition.tokens for condition in conditions])
        lengths = tuple(length for condition in conditions for length in condition.lengths)
        return Condition(tokens, torch.cat(pooled) if pooled else None, torch.cat(masks) if masks else None, lengths)


class Architecture(ABC):
    """A model's denoiser and text encoders. ``denoise`` returns what the noise schedule's ``prediction`` says.

    A subclass in this folder registers itself by naming its ``denoiser_class``, a class of diffusers:

    - ``title``: name for people.
    - ``denoiser_component``, ``required_components``: names of the checkpoint's components, apart from the autoencoder.
    - ``patch``: side of the latent square that one token holds.
    - ``default_guidance_scale``: scale a guidance-distilled model expects; 0 for a model without a guidance input.
    - ``supports_controlnet``: whether ControlNets, image prompts and the memory of earlier frames work with it.
    - ``lora_mixin``: class of diffusers that reads its LoRA files; empty if LoRAs are not supported.
    - ``tiny_autoencoder``: hub name of the tiny autoencoder that was distilled for its latents.
    - ``single_file_pipeline``, ``single_file_key``: pipeline of diffusers that reads its single-file checkpoints, and
      the start of a weight's name that only these files have.
    - ``half_dtype``: 16-bit type whose range its activations fit: float16 is faster on old GPUs, but ends at 65,504.
    - ``dynamic_shift``: a flow's shift by the number of tokens and of steps, if the scheduler's config lacks it.
    - ``encode_negative``: encoder of a negative prompt, None where ``encode_prompt`` serves.
    - ``regional_transformer``: counterpart of the denoiser that computes some of its tokens; None where it has none.
    - ``caches_deep_features``: whether ``denoise_shallow`` works with it.

    ``compiled_denoiser`` is the denoiser as ``denoise`` calls it. ``memo`` holds its inputs apart from the latents: the
    same tensors at each tick, so that compiled backends reuse what they computed from them.
    """

    title = ""
    denoiser_class = ""
    denoiser_component = "transformer"
    required_components: tuple[str, ...] = ()
    patch = 1
    default_guidance_scale = 0.0
    supports_controlnet = False
    lora_mixin = ""
    tiny_autoencoder = ""
    single_file_pipeline = ""
    single_file_key = ""
    half_dtype = torch.bfloat16
    dynamic_shift: Callable[[int, int], float] | None = None
    encode_negative: Callable[[str], Condition] | None = None
    regional_transformer: type[RegionalTransformer] | None = None
    caches_deep_features = False

    def __init__(self, components: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        self.components, self.device, self.dtype = components, device, dtype
        self.denoiser = components[self.denoiser_component]
        self.compiled_denoiser = CompiledModule("denoiser", self.denoiser)
        self.compiled_regions: CompiledModule | None = None
        if self.regional_transformer is not None:
            self.compiled_regions = CompiledModule("regions", self.regional_transformer(self.denoiser))
        self.memo: Memo[Tensor] = Memo()

    @classmethod
    def matches(cls, components: Mapping[str, Any]) -> bool:
        """Return whether this class serves these components; of several that do, the most derived is used."""
        return type(components.get(cls.denoiser_component)).__name__ == cls.denoiser_class

    @abstractmethod
    def encode_prompt(self, text: str) -> Condition:
        """Encode a text as one row of condition, padded and truncated to the tokenizer's length."""

    @abstractmethod
    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, controlnets: ControlNetInputs | None = None
    ) -> Tensor:
        """Call the denoiser: x (rows, C, h, w), t (rows,), a condition of as many rows → raw output (rows, C, h, w).

        ``controlnets`` is None unless the class ``supports_controlnet``.
        """

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        """Call the denoiser for some of its tokens, or for all of them to fill the cache.

        Return their raw outputs, (rows, A or N, C · patch²), as ``pixel_unshuffle`` orders a patch, and the keys and
        values of what was computed, see ``RegionalTransformer``. Raises NotImplementedError without a
        ``regional_transformer``.
        """
        raise NotImplementedError(f"{self.title} computes all of its tokens")

    def denoise_shallow(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Call the denoiser with the features ``deep`` of an earlier call in place of its deep levels; None for all.

        Return the raw output and the features, see ``DeepCachedUNet``. Raises NotImplementedError without
        ``caches_deep_features``.
        """
        raise NotImplementedError(f"{self.title} has no deep levels")

    def mark_weights_changed(self) -> None:
        """Invalidate what was computed from the denoiser's weights."""
        self.compiled_denoiser.mark_weights_changed()
        if self.compiled_regions is not None:
            self.compiled_regions.mark_weights_changed()

    def guidance_input(self, guidance: float, rows: int) -> Tensor | None:
        """Return the scale for a guidance-distilled model, (rows,) float32, or None for any other model."""
        if not self.default_guidance_scale:
            return None
        scale = guidance or self.default_guidance_scale
        return self.memo.get(lambda: torch.full((rows,), scale, device=self.device), "scale", scale, rows)

    def tokenize(
        self, tokenizer: str, text: str, length: int | None = None, device: torch.device | None = None, **options: Any
    ) -> Any:
        """Return ids and mask of ``text`` under one of the tokenizers, (1, length) each, on the model's device."""
        encode = self.components[tokenizer]
        length = length or min(encode.model_max_length, MAX_PROMPT_TOKENS)
        encoded = encode(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **options)
        return encoded.to(device or self.device)
