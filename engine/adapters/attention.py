"""The attention of a U-Net's transformer blocks, with image prompts and a memory of earlier frames.

Installed once when a model is loaded. What it does follows from the state that it reads, so nothing about the model
changes while it runs.

- Self attention also sees the keys and values of earlier frames at the same step (Liang et al., "Looking Backward",
  arXiv 2405.15757).
- Cross attention adds the attention to an image prompt's tokens, weighted (Ye et al., "IP-Adapter", arXiv 2308.06721).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.shared.settings import MemorySettings

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagePrompt:
    """Layer → keys and values of an image's tokens, (1, heads, tokens, d) each, and the same for an empty image."""

    positive: dict[str, KeysValues]
    negative: dict[str, KeysValues]


class KeyValueMemory:
    """Keys and values of earlier frames, layer by layer: the last ``length`` ones, or their running mean.

    A ``strength`` s weighs each remembered token against a present one: its logit is raised by log s. 0 is no memory.
    """

    def __init__(self, strength: float = 0.0, length: int = 1, merge: str = "recent") -> None:
        self._strength, self._length, self._merge = strength, length, merge
        self._layers: dict[str, list[KeysValues]] = {}
        self._rows: Hashable = None

    @property
    def active(self) -> bool:
        """Whether earlier frames are attended to."""
        return self._strength > 0.0

    def configure(self, settings: MemorySettings) -> None:
        """Take new settings; what is remembered stays."""
        self._strength, self._length, self._merge = settings.strength, settings.length, settings.merge

    def begin_call(self, rows: Hashable) -> None:
        """Start a denoiser call with this arrangement of rows. Another one than before clears the memory."""
        if rows != self._rows or not self.active:
            self._layers.clear()
        self._rows = rows

    def reset(self) -> None:
        """Forget all earlier frames."""
        self._layers.clear()
        self._rows = None

    def extend(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values (rows, heads, tokens, d) followed by the remembered ones, and the attention bias."""
        if not self.active:
            return keys, values, None
        remembered = self._layers.get(layer, [])
        self._layers[layer] = self._remember(remembered, keys, values)
        if not remembered:
            return keys, values, None
        tokens = keys.shape[2]
        keys = torch.cat([keys, *(k for k, _ in remembered)], 2)
        values = torch.cat([values, *(v for _, v in remembered)], 2)
        bias = keys.new_zeros(1, 1, 1, keys.shape[2])
        bias[..., tokens:] = math.log(self._strength)
        return keys, values, bias

    def _remember(self, remembered: list[KeysValues], keys: Tensor, values: Tensor) -> list[KeysValues]:
        if self._merge == "recent" or not remembered:
            return [(keys, values), *remembered][: self._length]
        share = 1.0 / (self._length + 1)
        return [(torch.lerp(remembered[0][0], keys, share), torch.lerp(remembered[0][1], values, share))]


class AttentionState(threading.local):
    """What the attention of one model reads on this thread: two streams of one model may run at once.

    The ``memory`` of earlier frames, an image ``prompt`` with its ``weight``, and the number of rows at the end that
    carry the negative prompt.
    """

    def __init__(self) -> None:
        self.memory = KeyValueMemory()
        self.prompt: ImagePrompt | None = None
        self.weight = 0.0
        self.negatives = 0

    def is_plain(self) -> bool:
        """Return whether this attention now equals diffusers' own."""
        return not self.memory.active and (self.prompt is None or self.weight == 0.0)


class StreamAttention:
    """diffusers' attention processor for ``attn1`` and ``attn2``; equal to its own where the state is plain."""

    def __init__(self, layer: str, state: AttentionState) -> None:
        self.layer, self.state = layer, state

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        rows = len(hidden_states)

        def heads(x: Tensor) -> Tensor:
            return x.view(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, keys, values = heads(attn.to_q(hidden_states)), heads(attn.to_k(context)), heads(attn.to_v(context))
        bias: Tensor | None = None
        if encoder_hidden_states is None:
            keys, values, bias = self.state.memory.extend(self.layer, keys, values)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        prompt = self.state.prompt
        if encoder_hidden_states is not None and prompt is not None and self.state.weight:
            out = out + self.state.weight * scaled_dot_product_attention(query, *self._image_tokens(prompt, rows))
        out = out.transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def _image_tokens(self, prompt: ImagePrompt, rows: int) -> KeysValues:
        """Return the image's keys and values for the rows, and the empty image's for the negative rows at the end."""
        sides = [(prompt.positive, rows - self.state.negatives), (prompt.negative, self.state.negatives)]
        parts = [tuple(t.expand(count, -1, -1, -1) for t in side[self.layer]) for side, count in sides if count]
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])


def install_stream_attention(unet: Any) -> AttentionState:
    """Install StreamAttention in the transformer blocks of a U-Net; return the state that it reads."""
    state = AttentionState()
    processors = dict(unet.attn_processors)
    for name in processors:
        layer = name.removesuffix(".processor")
        if layer.endswith((".attn1", ".attn2")):
            processors[name] = StreamAttention(layer, state)
    unet.set_attn_processor(processors)
    return state
