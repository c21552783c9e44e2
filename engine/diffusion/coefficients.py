"""What the hot path looks up instead of computing: noises and coefficients, kept on the device for as long as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.diffusion.schedule import Step, clean_coefficients, noise, slerp
from engine.models import Model
from engine.runtime.memo import Memo
from engine.shared.snapshot import Mixture


@dataclass(frozen=True)
class RowCoefficients:
    """The rows of one denoiser call: those in flight, and again those that are also denoised under the negative prompt.

    ``index`` finds them among those in flight. ``t`` (rows,) holds for them, and (rows, 1, 1, 1) what F has ``of_x`` and ``of_output``.
    ``a``, ``c_skip`` and ``c_out`` hold for those in flight alone, and what D has of both where nothing guides.
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
    """The tables of one stream."""

    def __init__(self, model: Model, width: int, height: int) -> None:
        self._device, self._shape = model.device, model.latent_shape(width, height)
        self._prediction = model.noise_schedule.prediction
        self._noises: Memo[Tensor] = Memo()
        self._rows: Memo[RowCoefficients] = Memo()

    def noises(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        """ε₁ … εₙ of the seeds, (n, C, h, w) float32, channels last."""
        return self._noises.get(
            lambda: noise(seeds, mix, steps, self._shape).to(self._device, memory_format=torch.channels_last),
            seeds,
            mix,
            steps,
        )

    def mixed(self, looks: Mixture, steps: int) -> Tensor:
        """ε₁ … εₙ of several looks in one, spherically by their shares."""
        noises, total = None, 0.0
        for look, share in looks:
            own = self.noises((int(look["/seed"]), int(look["/seed/2"])), float(look["/seed/mix"]), steps)
            total += share
            noises = own if noises is None or noises is own else slerp(noises, own, share / total, dims=(1, 2, 3))
        assert noises is not None
        return noises

    def rows(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> RowCoefficients:
        """The rows of a call: the i-th step holds for sizes[i] of them, the last ``negatives`` are denoised once more."""
        return self._rows.get(lambda: self._made(steps, sizes, negatives), steps, sizes, negatives)

    def _made(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> RowCoefficients:
        rows = []
        for s, size in zip(steps, sizes, strict=True):
            of_x, of_output = clean_coefficients(self._prediction, s.a, s.b)
            rows += [
                (s.t, of_x, of_output, s.a, s.c_skip, s.c_out, s.c_out * of_x + s.c_skip, s.c_out * of_output)
            ] * size
        t, x, output, *own = torch.tensor(rows, dtype=torch.float32).T[..., None, None, None].to(self._device).unbind(0)
        every = torch.arange(len(rows), device=self._device)
        index = torch.cat([every, every[len(rows) - negatives :]]) if negatives else slice(None)
        return RowCoefficients(index, t[index].flatten(), x[index], output[index], *own)
