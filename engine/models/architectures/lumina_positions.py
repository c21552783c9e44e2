"""Positions of Lumina-Image 2.0's joint sequence, computed once for each prompt and size.

diffusers reads the length of each row's prompt from the mask on the device, and uploads its tables, at every call.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime.memo import Memo
from engine.runtime.uploads import upload, upload_packed

#: Arrangements of rows whose positions are kept; each takes some megabytes.
MAX_ENTRIES = 8


class MemoisedPositions(nn.Module):
    """Stands in for the transformer's ``rope_embedder``, which computes on the CPU here."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.embedder = embedder
        self._call = threading.local()  # two streams of one model may run at once
        self._memo: Memo[tuple[Any, ...]] = Memo(MAX_ENTRIES)
        self._tables: Memo[Tensor] = Memo(MAX_ENTRIES)

    def set_lengths(self, lengths: tuple[int, ...]) -> None:
        """Take the number of tokens that count in each row of this thread's next call."""
        self._call.lengths = lengths

    def forward(self, latents: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """Return what the embedder does: patches (rows, tokens, width), rotary embeddings, and the rows' lengths.

        The embeddings are those of the prompts, of the pictures, and of both in one sequence.
        """
        lengths: tuple[int, ...] | None = getattr(self._call, "lengths", None)
        if lengths is None:  # as where a graph of the module is tried: it would hold for one prompt alone
            raise RuntimeError("positions follow the lengths of prompts, which are no tensors")
        size, device = tuple(latents.shape[-2:]), latents.device
        rest = self._memo.get(lambda: self._build(lengths, mask.shape[1], size, device), lengths, mask.shape[1], size)
        side = int(self.embedder.patch_size)
        patches = nn.functional.pixel_unshuffle(latents, side).flatten(2).unflatten(1, (-1, side * side))
        return (patches.permute(0, 3, 2, 1).flatten(2), *rest)

    def rotary_tables(
        self, lengths: tuple[int, ...], length: int, size: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """Return the embeddings of prompts padded to ``length``, then of pictures, (rows, length + N, head width).

        They are cosines and sines in float32, those of all frequencies one after the other; zeros for padding.
        """

        def build() -> Tensor:
            _, of_prompts, of_pictures, *_ = self._embed(lengths, length, size)
            tokens = torch.cat([of_prompts, of_pictures], 1)
            return upload(torch.cat([tokens.real, tokens.imag], 2).float(), device)

        return self._tables.get(build, lengths, length, tuple(size), device)

    def _build(
        self, lengths: tuple[int, ...], length: int, size: tuple[int, ...], device: torch.device
    ) -> tuple[Any, ...]:
        _, *embeddings, of_prompts, of_all = self._embed(lengths, length, size)
        return (*upload_packed(embeddings, device), of_prompts, of_all)

    def _embed(self, lengths: tuple[int, ...], length: int, size: tuple[int, ...]) -> Any:
        """Return what the embedder does for prompts of these lengths, on the CPU."""
        counts = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        return self.embedder(torch.zeros(len(lengths), 1, *size), counts)
