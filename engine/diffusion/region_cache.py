"""What region-adaptive sampling remembers: for each row of the denoiser's batch its keys, values and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.diffusion.denoiser_call import RowKey


class RegionCache:
    """Rows of tokens by key: the key of a row says which frame, or which step along the frames, it belongs to.

    The tensors hold all rows that were ever in use at once: ``outputs`` the raw outputs (P, N, width) float32,
    ``reference`` the tokens as they were when they were computed, of the same shape, ``skips`` how often each was
    skipped since, ``stale`` the rounds after which it holds nothing of an old picture, and ``metric`` its m, (P, N)
    each. ``keys_values`` is (P, layers, 2, text + N, width). A row ``is_filled`` once all of its tokens were computed.
    """

    outputs: Tensor
    reference: Tensor
    skips: Tensor
    stale: Tensor
    metric: Tensor
    keys_values: Tensor | None

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, and free the memory."""
        self._rows: dict[RowKey, int] = {}
        self._filled: set[int] = set()
        self._capacity = 0
        self.keys_values = None
        for name in ("outputs", "reference", "skips", "stale", "metric"):
            if hasattr(self, name):
                delattr(self, name)

    def rows(self, keys: Sequence[RowKey], like: Tensor) -> list[int]:
        """Return the row of each key; a new key takes a free row that is not filled. ``like`` is (…, N, width)."""
        for key in keys:
            if key not in self._rows:
                used = set(self._rows.values())
                row = next(i for i in range(len(used) + 1) if i not in used)
                self._rows[key] = row
                self._filled.discard(row)
        needed = max(self._rows.values(), default=-1) + 1
        if needed > self._capacity:
            self._grow(needed, like)
        return [self._rows[key] for key in keys]

    @property
    def keys(self) -> list[RowKey]:
        """The keys of all rows."""
        return list(self._rows)

    def retain(self, keys: Iterable[RowKey]) -> None:
        """Free the rows of all other keys."""
        retained = set(keys)
        self._rows = {key: row for key, row in self._rows.items() if key in retained}

    def is_filled(self, row: int) -> bool:
        """Return whether all tokens of a row were computed."""
        return row in self._filled

    def fill(self, rows: Sequence[int], outputs: Tensor, reference: Tensor, keys_values: Tensor) -> None:
        """Store rows of which everything was computed."""
        self._make_room(keys_values)
        assert self.keys_values is not None
        for i, row in enumerate(rows):
            self.outputs[row], self.reference[row] = outputs[i], reference[i]
            self.skips[row] = 0
            self.stale[row] = 0
            self.keys_values[row] = keys_values[i]
            self._filled.add(row)

    def update(
        self, rows: Sequence[int], active: Tensor, outputs: Tensor, reference: Tensor, keys_values: Tensor
    ) -> None:
        """Store the tokens that were computed: ``active`` their indices (rows, A), ``outputs`` (rows, A, width).

        ``reference`` holds all tokens of the rows, ``keys_values`` the computed ones, with or without the text's.
        """
        assert self.keys_values is not None
        text = self.keys_values.shape[3] - self.outputs.shape[1]
        with_text = keys_values.shape[3] > active.shape[1]
        places = active + text
        if with_text:
            places = torch.cat([torch.arange(text, device=active.device).expand(len(active), -1), places], 1)
        for first, last, part in _runs(rows):
            of_token = active[part, :, None].expand(-1, -1, outputs.shape[-1])
            self.outputs[first:last].scatter_(1, of_token, outputs[part])
            self.reference[first:last].scatter_(1, of_token, reference[part].gather(1, of_token))
            self.skips[first:last].add_(1).scatter_(1, active[part], 0.0)
            stale = self.stale[first:last]
            stale.scatter_(1, active[part], (stale.gather(1, active[part]) - 1).clamp_(min=0))
            computed = keys_values[part]
            self.keys_values[first:last].scatter_(3, places[part, None, None, :, None].expand_as(computed), computed)

    def select(self, pool: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the rows of a tensor of the cache: a view where they follow each other, else a copy."""
        runs = _runs(rows)
        if len(runs) == 1:
            return pool[runs[0][0] : runs[0][1]]
        return torch.cat([pool[first:last] for first, last, _ in runs])

    def _make_room(self, keys_values: Tensor) -> None:
        """Allocate the keys and values, as many rows as of everything else."""
        rows = 0 if self.keys_values is None else len(self.keys_values)
        if rows < self._capacity:
            grown = keys_values.new_zeros(self._capacity, *keys_values.shape[1:])
            if self.keys_values is not None:
                grown[:rows] = self.keys_values
            self.keys_values = grown

    def _grow(self, capacity: int, like: Tensor) -> None:
        """Enlarge all tensors to ``capacity`` rows."""
        tokens, width = like.shape[-2:]
        sizes: dict[str, tuple[int, ...]] = {"outputs": (tokens, width), "reference": (tokens, width)}
        sizes |= dict.fromkeys(("skips", "stale", "metric"), (tokens,))
        for name, size in sizes.items():
            grown = torch.zeros(capacity, *size, dtype=torch.float32, device=like.device)
            if self._capacity:
                grown[: self._capacity] = getattr(self, name)
            setattr(self, name, grown)
        self._capacity = capacity
        if self.keys_values is not None:
            self._make_room(self.keys_values)


def _runs(rows: Sequence[int]) -> list[tuple[int, int, slice]]:
    """Return runs of rows that follow each other: first row, row after the last, and where they lie in ``rows``."""
    runs: list[tuple[int, int, slice]] = []
    begin = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            runs.append((rows[begin], rows[i - 1] + 1, slice(begin, i)))
            begin = i
    return runs
