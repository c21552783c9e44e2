"""Lumina-Image 2.0 with a choice of tokens: text and picture in one sequence (arXiv 2503.21758)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle, scaled_dot_product_attention

from engine.models.regional.base import LayerCache, RegionalTransformer, heads_of
from engine.models.regional.lumina import repeat_heads, rotate, run_block

#: Keys and values.
Pair = tuple[Tensor, Tensor]


class RegionalLumina2(RegionalTransformer):
    """``Lumina2Transformer2DModel``. Each row has all text tokens, with a mask where diffusers packs the prompts.

    ``rotary`` are the cosines and sines of the text's and the picture's positions, (rows, text + N, head width)
    float32, see ``rotate``. The cache begins with the layers of the noise refiner, with zeros for the text. Without
    text tokens the context refiner is left out too.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        rotary: Tensor,
        active: Tensor | None = None,
        cache: Tensor | None = None,
        with_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        model, length = self.wrapped, encoder_hidden_states.shape[1]
        layers = LayerCache(cache, active, length, with_text)
        patches = _patches(hidden_states, int(model.config["patch_size"]))
        mask = pad(encoder_attention_mask.bool(), (0, patches.shape[1]), value=True)
        embed = model.time_caption_embed
        temb = embed.timestep_embedder(embed.time_proj(timestep).type_as(hidden_states))
        rotary_text, rotary = rotary[:, :length], layers.gather(rotary[:, length:])
        tokens = model.x_embedder(layers.gather(patches))
        for block in model.noise_refiner:
            attend = partial(_attend, block.attn, rotary, None, partial(_extend_picture, layers))
            tokens = run_block(block, tokens, temb, attend)
        if layers.with_text:
            text = _refine_text(model, embed.caption_embedder(encoder_hidden_states), rotary_text, mask[:, :length])
            tokens, rotary = torch.cat([text, tokens], 1), torch.cat([rotary_text, rotary], 1)
        for block in model.layers:
            tokens = run_block(block, tokens, temb, partial(_attend, block.attn, rotary, mask, layers.extend))
        picture = tokens[:, length:] if layers.with_text else tokens
        output = model.norm_out(picture, temb).unflatten(2, (-1, model.out_channels))
        return output.transpose(2, 3).flatten(2), layers.result()


def _attend(
    attn: Any, rotary: Tensor, mask: Tensor | None, extend: Callable[[Tensor, Tensor], Pair], normed: Tensor
) -> Tensor:
    """Return an attention's output for normalized tokens, (rows, tokens, width).

    ``extend`` returns the keys and values of all tokens from these ones'. Those where ``mask``, (rows, all), is not set
    are not attended to.
    """
    query = rotate(heads_of(attn.to_q(normed), attn.heads, attn.norm_q), rotary)
    keys, values = attn.to_k(normed), attn.to_v(normed)
    groups = keys.shape[2] // rotary.shape[2]
    keys, values = extend(rotate(heads_of(keys, groups, attn.norm_k), rotary), heads_of(values, groups))
    keys, values = repeat_heads(keys, attn.heads), repeat_heads(values, attn.heads)
    mask = None if mask is None else mask[:, None, None]
    out = scaled_dot_product_attention(query, keys, values, mask, scale=attn.scale)
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _extend_picture(layers: LayerCache, keys: Tensor, values: Tensor) -> Pair:
    """Return keys and values of all of the picture's tokens, in a layer without text."""
    keys, values = layers.extend(layers.keep_text(keys), layers.keep_text(values))
    return keys[:, :, layers.text :], values[:, :, layers.text :]


def _patches(latents: Tensor, side: int) -> Tensor:
    """Return the latents' patches (rows, N, side² · C), each by row, column and channel."""
    patches = pixel_unshuffle(latents, side).flatten(2).unflatten(1, (-1, side * side))
    return patches.permute(0, 3, 2, 1).flatten(2)


def _refine_text(model: Any, text: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
    """Return the text's tokens after the context refiner, zeros where ``mask``, (rows, text), is not set."""
    for block in model.context_refiner:
        attended = _attend(block.attn, rotary, mask, lambda *alone: alone, block.norm1(text))
        text = text + block.norm2(attended)
        text = text + block.ffn_norm2(block.feed_forward(block.ffn_norm1(text)))
    return text.masked_fill(~mask[:, :, None], 0)  # an empty prompt attends to nothing, which may be NaN
