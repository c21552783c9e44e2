"""FLUX.1 with a choice of tokens: blocks of two streams, then blocks of one over text and picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from engine.models.regional.base import LayerCache, RegionalTransformer, heads_of
from engine.models.regional.rotary_attention import Rotary, attend, attend_jointly, clip_half, gather_rotary


class RegionalFlux(RegionalTransformer):
    """``FluxTransformer2DModel`` on latents that are not packed yet: a token is a patch of 2×2.

    ``timestep`` (rows,) is in 0..1. ``guidance`` (rows,) is None for a model without a guidance embedding. ``txt_ids``
    (text, 3) and ``img_ids`` (N, 3) are the places of all tokens. Without text tokens only the picture's pass.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        active: Tensor | None = None,
        cache: Tensor | None = None,
        with_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        model = self.wrapped
        layers = LayerCache(cache, active, encoder_hidden_states.shape[1], with_text)
        picture = model.x_embedder(layers.gather(pixel_unshuffle(hidden_states, 2).flatten(2).transpose(1, 2)))
        times = [one.to(picture.dtype) * 1000 for one in (timestep, guidance) if one is not None]
        temb = model.time_text_embed(*times, pooled_projections)
        text = model.context_embedder(encoder_hidden_states) if layers.with_text else None
        rotary = gather_rotary(model.pos_embed(torch.cat([txt_ids, img_ids])), layers)
        for block in model.transformer_blocks:
            picture, text = run_double_block(block, picture, text, temb, rotary, layers)
        tokens = picture if text is None else torch.cat([text, picture], 1)
        for block in model.single_transformer_blocks:
            tokens = run_single_block(block, tokens, temb, rotary, layers)
        picture = tokens[:, tokens.shape[1] - picture.shape[1] :]
        return model.proj_out(model.norm_out(picture, temb)), layers.result()


def run_double_block(
    block: Any, picture: Tensor, text: Tensor | None, temb: Tensor, rotary: Rotary, layers: LayerCache
) -> tuple[Tensor, Tensor | None]:
    """Return the picture's and the text's tokens after a block of two streams."""
    normed, *gates = block.norm1(picture, emb=temb)
    text_normed, *text_gates = (None,) if text is None else block.norm1_context(text, emb=temb)
    attended, text_attended = attend_jointly(block.attn, normed, text_normed, rotary, layers)
    picture = _finish_stream(picture, attended, gates, block.norm2, block.ff)
    if text is None or text_attended is None:
        return picture, None
    return picture, clip_half(_finish_stream(text, text_attended, text_gates, block.norm2_context, block.ff_context))


def _finish_stream(tokens: Tensor, attended: Tensor, gates: list[Tensor], norm: Any, feed_forward: Any) -> Tensor:
    """Add what a stream attended to, then its feed-forward layer; ``gates`` are those of AdaLN-Zero, (rows, width)."""
    gate, shift_mlp, scale_mlp, gate_mlp = (one[:, None] for one in gates)
    tokens = tokens + gate * attended
    return tokens + gate_mlp * feed_forward(norm(tokens) * (1 + scale_mlp) + shift_mlp)


def run_single_block(block: Any, tokens: Tensor, temb: Tensor, rotary: Rotary, layers: LayerCache) -> Tensor:
    """Return the tokens after a block of one stream, whose attention and feed-forward layer are parallel."""
    normed, gate = block.norm(tokens, emb=temb)
    attn = block.attn
    query = heads_of(attn.to_q(normed), attn.heads, attn.norm_q)
    keys = heads_of(attn.to_k(normed), attn.heads, attn.norm_k)
    values = heads_of(attn.to_v(normed), attn.heads)
    attended = attend(query, keys, values, rotary, layers)
    both = torch.cat([attended, block.act_mlp(block.proj_mlp(normed))], 2)
    return clip_half(tokens + gate[:, None] * block.proj_out(both))
