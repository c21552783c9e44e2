"""Noises and coefficients that the hot path looks up instead of computing, memoised on the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.diffusion.schedule import Step, clean_coefficients, noise, slerp
from engine.models import Model
from engine.runtime.memo import Memo
from engine.runtime.uploads import UploadMemo

#: A look's two seeds, their mix, and its share.
LookSeeds = tuple[tuple[int, int, float], float]


@dataclass(frozen=True)
class RowCoefficients:
    """Coefficients of one denoiser call, whose rows are those in flight and then those of the negative prompt.

    ``index`` selects the call's rows among those in flight. ``t`` is (rows,); ``of_x`` and ``of_output``, the
    coefficients of F, are (rows, 1, 1, 1). ``a``, ``c_skip``, ``c_out`` and the unguided coefficients of D hold for the
    rows in flight alone.
    """

    index: Tensor | slice
    t: Tensor
    of_x: Tensor
    of_output: Tensor
    a: Tensor
    c_skip: Tensor
    c_out: Tensor
    unguided_of_x: Tensor
    unguided_of_output: Tensor


class Coefficients:
    """The memoised tensors of one stream, on the device by ``uploads``.

    ``noise_values`` and ``row_values`` are what the other methods read there: a tick stages them with its frames.
    """

    def __init__(self, model: Model, width: int, height: int, uploads: UploadMemo | None = None) -> None:
        self._uploads = uploads or UploadMemo(model.device)
        self._device, self._shape = model.device, model.latent_shape(width, height)
        self._prediction = model.noise_schedule.prediction
        self._rows: Memo[RowCoefficients] = Memo()
        self._indices: Memo[Tensor] = Memo()

    def noise_values(self, looks: Sequence[LookSeeds], steps: int) -> dict[Hashable, Callable[[], Tensor]]:
        """Return what ``noises`` reads for each of the looks."""
        return {
            ("noises", (seed, seed_2), mix, steps): partial(noise, (seed, seed_2), mix, steps, self._shape)
            for (seed, seed_2, mix), _share in looks
        }

    def row_values(
        self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int
    ) -> dict[Hashable, Callable[[], Tensor]]:
        """Return what ``rows`` reads."""
        return {("rows", steps, sizes, negatives): lambda: self._columns(steps, sizes, negatives)}

    def noises(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        """Return ε₁ … εₙ of the seeds, (n, C, h, w) float32, channels last."""
        return self._uploads.get(("noises", seeds, mix, steps), lambda: noise(seeds, mix, steps, self._shape))

    def mixed_noises(self, looks: Sequence[LookSeeds], steps: int) -> Tensor:
        """Return ε₁ … εₙ of several looks, mixed spherically by their shares."""
        noises, total = None, 0.0
        for (seed, seed_2, seed_mix), share in looks:
            of_look = self.noises((seed, seed_2), seed_mix, steps)
            total += share
            if noises is None or noises is of_look:
                noises = of_look
            else:
                noises = slerp(noises, of_look, share / total, dims=(1, 2, 3))
        assert noises is not None
        return noises

    def rows(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> RowCoefficients:
        """Return the coefficients of a call: ``steps[i]`` for ``sizes[i]`` rows, the last ``negatives`` rows again."""
        return self._rows.get(lambda: self._build_rows(steps, sizes, negatives), steps, sizes, negatives)

    def _build_rows(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> RowCoefficients:
        ((key, compute),) = self.row_values(steps, sizes, negatives).items()
        t, of_x, of_output, *others = self._uploads.get(key, compute)[..., None, None, None].unbind(0)
        rows = sum(sizes)
        index = self._indices.get(lambda: self._index(rows, negatives), rows, negatives) if negatives else slice(None)
        return RowCoefficients(index, t.flatten(), of_x, of_output, *(column[:rows] for column in others))

    def _columns(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> Tensor:
        """Return the coefficients of a call's rows, in the order of ``RowCoefficients``, (8, rows) on the CPU."""
        rows = []
        for s, size in zip(steps, sizes, strict=True):
            of_x, of_output = clean_coefficients(self._prediction, s.a, s.b)
            unguided = (s.c_out * of_x + s.c_skip, s.c_out * of_output)
            rows += [(s.t, of_x, of_output, s.a, s.c_skip, s.c_out, *unguided)] * size
        return torch.tensor(rows + rows[len(rows) - negatives :] * (negatives > 0), dtype=torch.float32).T.contiguous()

    def _index(self, rows: int, negatives: int) -> Tensor:
        every = torch.arange(rows, device=self._device)
        return torch.cat([every, every[rows - negatives :]])
