"""A U-Net whose deep levels can be left out: their features are given instead.

Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858): the features that come up from the
deep levels change slowly. The paper reuses them along the steps of a picture, a stream along its frames.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

#: Levels that every call computes: the first two, of the highest resolutions. With fewer than three levels one less.
SHALLOW_LEVELS = 2


class DeepCachedUNet(nn.Module):
    """diffusers' ``UNet2DConditionModel``, ``wrapped``, with the features of its deep levels as argument and result.

    ``forward`` takes the latents (rows, C, h, w), the timesteps (rows,), the prompt's tokens, and ``deep``: the
    features that the deep levels returned in an earlier call, (rows, width, h', w'), None to compute them. It returns
    the output (rows, C, h, w) and those features. One call that a compiler can export: no branch depends on values.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped
        self._shallow = min(SHALLOW_LEVELS, len(wrapped.down_blocks) - 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        deep: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        unet, added, shallow = self.wrapped, added_cond_kwargs or {}, self._shallow
        embedding = unet.time_embedding(unet.get_time_embed(sample=x, timestep=t), timestep_cond)
        of_added = unet.get_aug_embed(emb=embedding, encoder_hidden_states=tokens, added_cond_kwargs=added)
        embedding = embedding if of_added is None else embedding + of_added
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        tokens = unet.process_encoder_hidden_states(encoder_hidden_states=tokens, added_cond_kwargs=added)
        divisor = 2 ** (len(unet.up_blocks) - 1)
        self_sizing = x.shape[-2] % divisor == 0 and x.shape[-1] % divisor == 0

        def down(h: Tensor, blocks: Any, skips: list[Tensor]) -> Tensor:
            for block in blocks:
                h, of_block = _call(block, h, embedding, tokens)
                skips.extend(of_block)
            return h

        def up(h: Tensor, blocks: Any, skips: list[Tensor]) -> Tensor:
            for block in blocks:
                count = len(block.resnets)
                of_block = tuple(skips[-count:])
                del skips[-count:]
                size = skips[-1].shape[2:] if skips and not self_sizing else None
                h = _call(block, h, embedding, tokens, res_hidden_states_tuple=of_block, upsample_size=size)
            return h

        h = unet.conv_in(x)
        skips = [h]
        h = down(h, unet.down_blocks[:shallow], skips)
        if deep is None:
            h = down(h, unet.down_blocks[shallow:], skips)
            if unet.mid_block is not None:
                h = _call(unet.mid_block, h, embedding, tokens)
            deep = up(h, unet.up_blocks[:-shallow], skips)
        else:
            skips.pop()  # the way into the deep levels
        h = up(deep, unet.up_blocks[-shallow:], skips)
        if unet.conv_norm_out is not None:
            h = unet.conv_act(unet.conv_norm_out(h))
        return unet.conv_out(h), deep


def _call(block: Any, h: Tensor, embedding: Tensor, tokens: Tensor, **options: Any) -> Any:
    """Call a block of the U-Net, with the prompt's tokens if it has cross attention."""
    if getattr(block, "has_cross_attention", False):
        options["encoder_hidden_states"] = tokens
    return block(h, temb=embedding, **options)
