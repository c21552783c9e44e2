"""Attention with rotary positions for a choice of tokens, as FLUX.1 and FLUX.2 share it (RoFormer, arXiv 2104.09864).

Every token is rotated by its own place in the sequence, whichever tokens are computed. Keys are cached rotated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.models.regional.base import LayerCache, heads_of

#: Cosines and sines of the computed tokens' angles, (rows or 1, 1, tokens, d) float32; each angle fills two columns.
Rotary = tuple[Tensor, Tensor]


def gather_rotary(tables: tuple[Tensor, Tensor], layers: LayerCache) -> Rotary:
    """Return the cosines and sines of the computed tokens, from the tables of all tokens, (text + N, d)."""
    cosines, sines = (_gather_places(table, layers) for table in tables)
    return cosines, sines


def _gather_places(table: Tensor, layers: LayerCache) -> Tensor:
    if layers.active is None:
        return table[None, None]
    picture = table[layers.text :][layers.active]
    if layers.with_text:
        picture = torch.cat([table[: layers.text].expand(picture.shape[0], -1, -1), picture], 1)
    return picture[:, None]


def rotate(tokens: Tensor, rotary: Rotary) -> Tensor:
    """Rotate each pair of neighbouring columns of ``tokens`` (rows, heads, tokens, d), in float32."""
    cosines, sines = rotary
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (tokens.float() * cosines + turned.float() * sines).to(tokens.dtype)


def attend(query: Tensor, keys: Tensor, values: Tensor, rotary: Rotary, layers: LayerCache) -> Tensor:
    """Let the computed tokens attend to all tokens: (rows, heads, tokens, d) each → (rows, tokens, heads · d)."""
    keys, values = layers.extend(rotate(keys, rotary), values)
    return scaled_dot_product_attention(rotate(query, rotary), keys, values).transpose(1, 2).flatten(2)


def attend_jointly(
    attn: Any, picture: Tensor, text: Tensor | None, rotary: Rotary, layers: LayerCache
) -> tuple[Tensor, Tensor | None]:
    """Return a double block's attention for the computed tokens of the picture, and of the text if it is computed."""
    query = heads_of(attn.to_q(picture), attn.heads, attn.norm_q)
    keys = heads_of(attn.to_k(picture), attn.heads, attn.norm_k)
    values = heads_of(attn.to_v(picture), attn.heads)
    if text is None:
        return attn.to_out[0](attend(query, keys, values, rotary, layers)), None
    query = torch.cat([heads_of(attn.add_q_proj(text), attn.heads, attn.norm_added_q), query], 2)
    keys = torch.cat([heads_of(attn.add_k_proj(text), attn.heads, attn.norm_added_k), keys], 2)
    values = torch.cat([heads_of(attn.add_v_proj(text), attn.heads), values], 2)
    out = attend(query, keys, values, rotary, layers)
    length = text.shape[1]
    return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])


def clip_half(tokens: Tensor) -> Tensor:
    """Clip float16 to its largest finite value, as these models do; return any other type as it is."""
    return tokens.clip(-65504, 65504) if tokens.dtype == torch.float16 else tokens
