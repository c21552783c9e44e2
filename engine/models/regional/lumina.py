"""Lumina-Next with a choice of tokens: self attention over the picture, gated attention to the text (arXiv 2406.18583).

``rotate`` and ``run_block`` serve Lumina-Image 2.0 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle, scaled_dot_product_attention

from engine.models.regional.base import LayerCache, RegionalTransformer, heads_of


class RegionalLuminaNext(RegionalTransformer):
    """``LuminaNextDiT2DModel``. The cache holds no text tokens: their keys and values follow from the prompt alone.

    ``rotary`` are the cosines and sines of the tokens' positions, (rows, N, head width) float32, see ``rotate``. The
    softmax in the self attention is scaled for N tokens against the ``base_sequence_length`` of training. Where the
    model learns the variance, the outputs have twice the latents' channels, the velocity's first.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_mask: Tensor,
        rotary: Tensor,
        base_sequence_length: int,
        active: Tensor | None = None,
        cache: Tensor | None = None,
        with_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        model = self.wrapped
        layers = LayerCache(cache, active, 0, with_text=False)
        side = int(model.config["patch_size"])
        patches = pixel_unshuffle(hidden_states, side).flatten(2).transpose(1, 2)
        stretch = math.sqrt(math.log(patches.shape[1], base_sequence_length))
        picture = model.patch_embedder.proj(layers.gather(patches))
        temb = model.time_caption_embed(timestep, encoder_hidden_states, encoder_mask)
        rotary, mask = layers.gather(rotary), encoder_mask.bool()[:, None, None]
        for block in model.layers:
            attend = partial(_attend, block, rotary, encoder_hidden_states, mask, stretch, layers)
            picture = run_block(block, picture, temb, attend)
        output = model.norm_out(picture, temb)
        return output.unflatten(2, (side * side, -1)).transpose(2, 3).flatten(2), layers.result()


def run_block(block: Any, tokens: Tensor, temb: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the tokens after a block; ``attend`` maps normalized tokens to the attention's projected output."""
    normed, gate, scale_mlp, gate_mlp = block.norm1(tokens, temb)
    tokens = tokens + gate[:, None].tanh() * block.norm2(attend(normed))
    mlp = block.feed_forward(block.ffn_norm1(tokens) * (1 + scale_mlp[:, None]))
    return tokens + gate_mlp[:, None].tanh() * block.ffn_norm2(mlp)


def rotate(tokens: Tensor, rotary: Tensor) -> Tensor:
    """Rotate each pair of neighbouring channels of (rows, heads, tokens, d) by its position's angle, in float32.

    ``rotary`` is (rows, tokens, d): the cosines of the d/2 angles, then their sines (RoPE, arXiv 2104.09864).
    """
    cos, sin = rotary[:, None].chunk(2, -1)
    x, y = tokens.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1).flatten(-2).type_as(tokens)


def repeat_heads(tokens: Tensor, heads: int) -> Tensor:
    """Return keys or values (rows, kv heads, tokens, d) as (rows, heads, tokens, d), each for its group of queries."""
    repeats = heads // tokens.shape[1]
    return tokens[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2)


def _project(project: Any, norm: Any, tokens: Tensor, width: int) -> Tensor:
    """Return projected tokens as heads of ``width``; Lumina-Next normalizes across all of its heads."""
    projected = project(tokens)
    return heads_of(projected if norm is None else norm(projected), projected.shape[2] // width)


def _attend(
    block: Any, rotary: Tensor, text: Tensor, mask: Tensor, stretch: float, layers: LayerCache, normed: Tensor
) -> Tensor:
    """Return the output of a block's attention to the picture and, behind each head's gate, to the text."""
    picture = _self_attention(block.attn1, normed, rotary, stretch * block.attn1.scale, layers)
    prompt = _cross_attention(block.attn2, normed, rotary, block.norm1_context(text), mask)
    mixed = picture + prompt * block.gate.tanh()[:, None, None]
    return block.attn2.to_out[0](mixed.transpose(1, 2).flatten(2))


def _self_attention(attn: Any, picture: Tensor, rotary: Tensor, scale: float, layers: LayerCache) -> Tensor:
    """Return the heads' outputs, (rows, heads, A, d), over the picture's tokens."""
    width = rotary.shape[2]
    query = rotate(_project(attn.to_q, attn.norm_q, picture, width), rotary)
    keys = rotate(_project(attn.to_k, attn.norm_k, picture, width), rotary)
    keys, values = layers.extend(keys, _project(attn.to_v, None, picture, width))
    return scaled_dot_product_attention(
        query, repeat_heads(keys, attn.heads), repeat_heads(values, attn.heads), scale=scale
    )


def _cross_attention(attn: Any, picture: Tensor, rotary: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Return the heads' outputs, (rows, heads, A, d), over the text's tokens, which have no positions."""
    width = rotary.shape[2]
    query = rotate(_project(attn.to_q, attn.norm_q, picture, width), rotary)
    keys = _project(attn.to_k, attn.norm_k, text, width)
    values = _project(attn.to_v, None, text, width)
    return scaled_dot_product_attention(query, repeat_heads(keys, attn.heads), repeat_heads(values, attn.heads), mask)
