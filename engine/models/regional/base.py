"""What the regional transformers share: the cache of keys and values, and the choice of the tokens that are computed.

Region-adaptive sampling (arXiv 2502.10389, section 3): the active tokens alone pass through the blocks. They attend to
all tokens, of which the others' keys and values are those of the step at which they were last computed.

Every module of this folder has one call, which a compiler can export: no branch depends on a tensor's values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenChoice:
    """The tokens to compute: the three arguments of that name of ``RegionalTransformer``. By default all of them."""

    active: Tensor | None = None
    cache: Tensor | None = None
    with_text: bool = True


class RegionalTransformer(nn.Module, ABC):
    """A transformer of diffusers, ``wrapped``, whose call can be limited to some tokens of the picture.

    ``forward`` takes the latents (rows, C, h, w), the timesteps (rows,) and whatever the architecture is conditioned
    on, and three further arguments. ``active`` are the indices of the tokens to compute, (rows, 1, 1, A) int64, without
    duplicates, in the grid's row-major order from 0; None for all. ``cache`` holds the keys and values of all layers,
    (rows, layers, 2, text + N, width), text tokens first; None together with ``active``. ``with_text`` says whether the
    text tokens are computed too, always so where ``active`` is None.

    It returns the tokens' outputs, (rows, A or N, C · patch²), each as ``pixel_unshuffle`` orders a patch, and the keys
    and values of what was computed, (rows, layers, 2, tokens, width), in the cache's order.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped

    @abstractmethod
    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Compute the active tokens, see the class."""


class LayerCache:
    """The keys and values of one call, layer by layer in the order of the calls of ``extend``.

    ``text`` is the number of text tokens in the cache. ``computed`` are the keys and values that were computed.
    """

    def __init__(self, cache: Tensor | None, active: Tensor | None, text: int, with_text: bool) -> None:
        self.computed: list[Tensor] = []
        self.text, self.with_text = text, with_text or active is None
        self._cache = cache
        self.active = None if active is None else active.flatten(1)
        self._index: tuple[Tensor, Tensor, Tensor] | None = None
        if self.active is not None:
            places, rows, device = self.active + text, self.active.shape[0], self.active.device  # len() would be fixed
            if with_text:
                places = torch.cat([torch.arange(text, device=device).expand(rows, -1), places], 1)
            rows_and_sides = torch.arange(rows, device=device)[:, None, None], torch.arange(2, device=device)[:, None]
            self._index = (*rows_and_sides, places[:, None])

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens, (rows, heads, text + N, d), from those computed in this layer.

        Both are (rows, heads, tokens, d): the text tokens, where they are computed, and then the picture's.
        """
        layer, heads = len(self.computed), keys.shape[1]
        computed = torch.stack([keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)], 1)
        self.computed.append(computed)
        if self._cache is None or self._index is None:
            return keys, values
        merged = self._cache[:, layer].index_put(self._index, computed)
        keys, values = merged.unflatten(3, (heads, -1)).transpose(2, 3).unbind(1)
        return keys, values

    def keep_text(self, picture: Tensor) -> Tensor:
        """Return ``picture`` (rows, heads, tokens, d) with zeros for the text tokens, of a layer that has none."""
        return nn.functional.pad(picture, (0, 0, self.text, 0)) if self.with_text else picture

    def gather(self, tokens: Tensor) -> Tensor:
        """Return the active ones of the picture's tokens (rows, N, width)."""
        if self.active is None:
            return tokens
        return tokens.gather(1, self.active[:, :, None].expand(-1, -1, tokens.shape[-1]))

    def result(self) -> Tensor:
        """Return what was computed, (rows, layers, 2, tokens, width)."""
        return torch.stack(self.computed, 1)


def heads_of(tokens: Tensor, heads: int, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return projected tokens (rows, tokens, heads · d) as (rows, heads, tokens, d), normalized by ``norm``."""
    split = tokens.unflatten(2, (heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)
