"""The attention of a U-Net's transformer blocks, with room for image prompts and for the memory of earlier frames.

Set once when a model is loaded; what it does follows from the state that it reads, so that nothing about the model changes while it runs.

- Self attention also sees the keys and values of the frames before, at the same step (Liang et al., "Looking Backward", arXiv 2405.15757).
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

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagePrompt:
    """Layer → keys and values of a picture's tokens, (1, heads, tokens, d) each, and the same for no picture at all."""

    positive: dict[str, KeysValues]
    negative: dict[str, KeysValues]


class KeyValueMemory:
    """Keys and values of the frames before, layer by layer: the last ``length`` ones, or their running mean.

    ``strength`` s weighs each remembered token against a present one: its logit is raised by log s. 0 is no memory.
    """

    def __init__(self) -> None:
        self.strength, self.length, self.merge = 0.0, 1, "recent"
        self._kept: dict[str, list[KeysValues]] = {}
        self._rows: Hashable = None

    def begin(self, rows: Hashable) -> None:
        """A denoiser call with this arrangement of rows begins. Another arrangement than before has no memory: rows would not match."""
        if rows != self._rows or self.strength == 0.0:
            self._kept.clear()
        self._rows = rows

    def extended(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the remembered ones behind them, (rows, heads, tokens, d), and their bias."""
        if self.strength == 0.0:
            return keys, values, None
        kept = self._kept.get(layer, [])
        self._kept[layer] = self._merged(kept, keys, values)
        if not kept:
            return keys, values, None
        own = keys.shape[2]
        keys, values = torch.cat([keys, *(k for k, _ in kept)], 2), torch.cat([values, *(v for _, v in kept)], 2)
        bias = keys.new_zeros(1, 1, 1, keys.shape[2])
        bias[..., own:] = math.log(self.strength)
        return keys, values, bias

    def _merged(self, kept: list[KeysValues], keys: Tensor, values: Tensor) -> list[KeysValues]:
        if self.merge == "recent" or not kept:
            return [(keys, values), *kept][: self.length]
        share = 1.0 / (self.length + 1)
        return [(torch.lerp(kept[0][0], keys, share), torch.lerp(kept[0][1], values, share))]


class AttentionState(threading.local):
    """What the attention of one model reads in this thread, for two streams of one model may run at once.

    ``memory`` of earlier frames, an image ``prompt`` with its ``weight``, and how many of the last rows carry the negative prompt.
    """

    def __init__(self) -> None:
        self.memory = KeyValueMemory()
        self.prompt: ImagePrompt | None = None
        self.weight = 0.0
        self.negatives = 0

    def plain(self) -> bool:
        """Whether this attention does now what diffusers' own does."""
        return self.memory.strength == 0.0 and (self.prompt is None or self.weight == 0.0)


class StreamAttention:
    """diffusers' attention processor for the blocks' ``attn1`` and ``attn2``, equal to its own where the state asks nothing."""

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
            keys, values, bias = self.state.memory.extended(self.layer, keys, values)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        prompt = self.state.prompt
        if encoder_hidden_states is not None and prompt is not None and self.state.weight:
            out = out + self.state.weight * scaled_dot_product_attention(query, *self._image(prompt, rows))
        out = out.transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def _image(self, prompt: ImagePrompt, rows: int) -> KeysValues:
        """Keys and values of the picture for the rows, and of no picture for the negative ones at the end."""
        sides = [(prompt.positive, rows - self.state.negatives), (prompt.negative, self.state.negatives)]
        parts = [tuple(t.expand(count, -1, -1, -1) for t in side[self.layer]) for side, count in sides if count]
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])


def install_stream_attention(unet: Any) -> AttentionState:
    """Gives the transformer blocks of a U-Net this attention; returns the state that steers it."""
    state = AttentionState()
    processors = dict(unet.attn_processors)
    for name in processors:
        layer = name.removesuffix(".processor")
        if layer.endswith((".attn1", ".attn2")):
            processors[name] = StreamAttention(layer, state)
    unet.set_attn_processor(processors)
    return state
