"""Stable Diffusion 3 and 3.5 with a choice of tokens: joint attention over text and picture (arXiv 2403.03206)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.models.regional.base import LayerCache, RegionalTransformer, heads_of


class RegionalSD3(RegionalTransformer):
    """``SD3Transformer2DModel``. Without text tokens each block leaves out its text stream."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        active: Tensor | None = None,
        cache: Tensor | None = None,
        with_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        model = self.wrapped
        layers = LayerCache(cache, active, encoder_hidden_states.shape[1], with_text)
        picture = layers.gather(model.pos_embed(hidden_states)).contiguous()
        temb = model.time_text_embed(timestep, pooled_projections)
        text = model.context_embedder(encoder_hidden_states) if layers.with_text else None
        for block in model.transformer_blocks:
            picture, text = run_block(block, picture, text, temb, layers)
        output = model.proj_out(model.norm_out(picture, temb))
        side = int(model.config["patch_size"])
        patches = output.unflatten(2, (side * side, -1)).transpose(2, 3).flatten(2)
        return patches, layers.result()


def run_block(
    block: Any, picture: Tensor, text: Tensor | None, temb: Tensor, layers: LayerCache
) -> tuple[Tensor, Tensor | None]:
    """Return the picture's and the text's tokens after a block; the last block returns no text."""
    if block.use_dual_attention:
        normed, gate, shift_mlp, scale_mlp, gate_mlp, normed_2, gate_2 = block.norm1(picture, emb=temb)
    else:
        normed, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(picture, emb=temb)
        normed_2 = gate_2 = None
    text_normed, text_gates = None, None
    if text is not None and block.context_pre_only:
        text_normed = block.norm1_context(text, temb)
    elif text is not None:
        text_normed, *text_gates = block.norm1_context(text, emb=temb)
    attended, text_attended = _joint_attention(block.attn, normed, text_normed, layers)
    picture = picture + gate[:, None] * attended
    if gate_2 is not None:
        picture = picture + gate_2[:, None] * _self_attention(block.attn2, normed_2, layers)
    normed = block.norm2(picture) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    picture = picture + gate_mlp[:, None] * block.ff(normed)
    if text is None or text_attended is None or text_gates is None:
        return picture, None
    gate, shift_mlp, scale_mlp, gate_mlp = text_gates
    text = text + gate[:, None] * text_attended
    normed = block.norm2_context(text) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
    return picture, text + gate_mlp[:, None] * block.ff_context(normed)


def _joint_attention(
    attn: Any, picture: Tensor, text: Tensor | None, layers: LayerCache
) -> tuple[Tensor, Tensor | None]:
    """Return the attention's outputs for the computed tokens of the picture, and of the text where that goes on."""
    query, keys, values = (
        heads_of(project(picture), attn.heads, norm)
        for project, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
    )
    if text is not None:
        text_query, text_keys, text_values = (
            heads_of(project(text), attn.heads, norm)
            for project, norm in (
                (attn.add_q_proj, attn.norm_added_q),
                (attn.add_k_proj, attn.norm_added_k),
                (attn.add_v_proj, None),
            )
        )
        keys, values = torch.cat([text_keys, keys], 2), torch.cat([text_values, values], 2)
        query = query if attn.context_pre_only else torch.cat([text_query, query], 2)
    out = scaled_dot_product_attention(query, *layers.extend(keys, values)).transpose(1, 2).flatten(2)
    if text is None or attn.context_pre_only:
        return attn.to_out[0](out), None
    length = text.shape[1]
    return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])


def _self_attention(attn: Any, picture: Tensor, layers: LayerCache) -> Tensor:
    """Return the output of the second attention of SD3.5's blocks, over the picture's tokens alone."""
    query = heads_of(attn.to_q(picture), attn.heads, attn.norm_q)
    keys = heads_of(attn.to_k(picture), attn.heads, attn.norm_k)
    values = heads_of(attn.to_v(picture), attn.heads)
    keys, values = layers.extend(layers.keep_text(keys), layers.keep_text(values))
    out = scaled_dot_product_attention(query, keys[:, :, layers.text :], values[:, :, layers.text :])
    return attn.to_out[0](out.transpose(1, 2).flatten(2))
