"""FLUX.2 with a choice of tokens: its blocks share one modulation and fuse their projections, otherwise as FLUX.1's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.models.regional.base import LayerCache, RegionalTransformer, heads_of
from engine.models.regional.rotary_attention import Rotary, attend, attend_jointly, clip_half, gather_rotary

#: Shift, scale and gate, (rows, 1, width) each, once for each part of a block.
Modulation = Sequence[Tensor]


class RegionalFlux2(RegionalTransformer):
    """``Flux2Transformer2DModel``: a token is a pixel of the latents, which the codec has patched.

    ``timestep`` (rows,) is in 0..1. ``guidance`` (rows,) is None for a model without a guidance embedding. ``txt_ids``
    (rows, text, 4) and ``img_ids`` (rows, N, 4) are the places of all tokens. Every row has the same, as in the whole
    model. Without text tokens only the picture's pass.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        active: Tensor | None = None,
        cache: Tensor | None = None,
        with_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        model = self.wrapped
        layers = LayerCache(cache, active, encoder_hidden_states.shape[1], with_text)
        picture = model.x_embedder(layers.gather(hidden_states.flatten(2).transpose(1, 2)))
        t, scale = (None if one is None else one.to(picture.dtype) * 1000 for one in (timestep, guidance))
        temb = model.time_guidance_embed(t, scale)
        text = model.context_embedder(encoder_hidden_states) if layers.with_text else None
        rotary = gather_rotary(model.pos_embed(torch.cat([txt_ids[0], img_ids[0]])), layers)
        of_picture = _split(model.double_stream_modulation_img, temb)
        of_text = _split(model.double_stream_modulation_txt, temb) if layers.with_text else ()
        of_both = _split(model.single_stream_modulation, temb)
        for block in model.transformer_blocks:
            picture, text = run_double_block(block, picture, text, of_picture, of_text, rotary, layers)
        tokens = picture if text is None else torch.cat([text, picture], 1)
        for block in model.single_transformer_blocks:
            tokens = run_single_block(block, tokens, of_both, rotary, layers)
        picture = tokens[:, tokens.shape[1] - picture.shape[1] :]
        return model.proj_out(model.norm_out(picture, temb)), layers.result()


def _split(modulation: Any, temb: Tensor) -> Modulation:
    return modulation(temb)[:, None].chunk(3 * modulation.mod_param_sets, -1)


def run_double_block(
    block: Any,
    picture: Tensor,
    text: Tensor | None,
    of_picture: Modulation,
    of_text: Modulation,
    rotary: Rotary,
    layers: LayerCache,
) -> tuple[Tensor, Tensor | None]:
    """Return the picture's and the text's tokens after a block of two streams."""
    normed = _modulate(block.norm1(picture), of_picture)
    text_normed = None if text is None else _modulate(block.norm1_context(text), of_text)
    attended, text_attended = attend_jointly(block.attn, normed, text_normed, rotary, layers)
    picture = _finish_stream(picture, attended, of_picture, block.norm2, block.ff)
    if text is None or text_attended is None:
        return picture, None
    return picture, clip_half(_finish_stream(text, text_attended, of_text, block.norm2_context, block.ff_context))


def run_single_block(block: Any, tokens: Tensor, of_both: Modulation, rotary: Rotary, layers: LayerCache) -> Tensor:
    """Return the tokens after a block of one stream: one projection into attention and feed-forward, one out."""
    attn = block.attn
    projected = attn.to_qkv_mlp_proj(_modulate(block.norm(tokens), of_both))
    width = attn.inner_dim
    query, keys, values, inner = projected.split([width, width, width, projected.shape[-1] - 3 * width], -1)
    attended = attend(
        heads_of(query, attn.heads, attn.norm_q),
        heads_of(keys, attn.heads, attn.norm_k),
        heads_of(values, attn.heads),
        rotary,
        layers,
    )
    out = attn.to_out(torch.cat([attended, attn.mlp_act_fn(inner)], 2))
    return clip_half(tokens + of_both[2] * out)


def _finish_stream(tokens: Tensor, attended: Tensor, modulation: Modulation, norm: Any, feed_forward: Any) -> Tensor:
    """Add what a stream attended to, then its feed-forward layer."""
    tokens = tokens + modulation[2] * attended
    return tokens + modulation[5] * feed_forward(_modulate(norm(tokens), modulation[3:]))


def _modulate(normed: Tensor, modulation: Modulation) -> Tensor:
    """Return normed · (1 + scale) + shift."""
    shift, scale = modulation[:2]
    return normed * (1 + scale) + shift
