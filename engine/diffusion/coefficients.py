"""Noises and coefficients that the hot path looks up instead of computing, memoised on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.diffusion.schedule import Step, clean_coefficients, noise, slerp
from engine.models import Model
from engine.runtime.memo import Memo


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
    """The memoised tensors of one stream."""

    def __init__(self, model: Model, width: int, height: int) -> None:
        self._device, self._shape = model.device, model.latent_shape(width, height)
        self._prediction = model.noise_schedule.prediction
        self._noises: Memo[Tensor] = Memo()
        self._rows: Memo[RowCoefficients] = Memo()

    def noises(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        """Return ε₁ … εₙ of the seeds, (n, C, h, w) float32, channels last."""
        return self._noises.get(
            lambda: noise(seeds, mix, steps, self._shape).to(self._device, memory_format=torch.channels_last),
            seeds,
            mix,
            steps,
        )

    def mixed_noises(self, looks: Sequence[tuple[tuple[int, int, float], float]], steps: int) -> Tensor:
        """Return ε₁ … εₙ of several looks, mixed spherically by their shares.

        A look is given by its two seeds, their mix, and its share.
        """
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
        rows = []
        for s, size in zip(steps, sizes, strict=True):
            of_x, of_output = clean_coefficients(self._prediction, s.a, s.b)
            unguided = (s.c_out * of_x + s.c_skip, s.c_out * of_output)
            rows += [(s.t, of_x, of_output, s.a, s.c_skip, s.c_out, *unguided)] * size
        columns = torch.tensor(rows, dtype=torch.float32).T[..., None, None, None].to(self._device)
        t, of_x_all, of_output_all, *in_flight = columns.unbind(0)
        every = torch.arange(len(rows), device=self._device)
        index = torch.cat([every, every[len(rows) - negatives :]]) if negatives else slice(None)
        return RowCoefficients(index, t[index].flatten(), of_x_all[index], of_output_all[index], *in_flight)
