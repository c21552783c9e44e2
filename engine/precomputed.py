"""What the hot path looks up instead of computing: noises and coefficients, kept on the device for as long as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kept import Kept
from engine.models import Model
from engine.parameters import Mixture
from engine.schedule import Step, noise, slerp


@dataclass(frozen=True)
class Rows:
    """The rows of one denoiser call: those in flight, and again those that are also denoised under the negative prompt.

    ``index`` finds them among those in flight. ``t`` (rows,), ``a`` and ``b`` (rows, 1, 1, 1) hold for them, ``own_a``, ``c_skip`` and
    ``c_out`` for those in flight alone.
    """

    index: Tensor | slice
    t: Tensor
    a: Tensor
    b: Tensor
    own_a: Tensor
    c_skip: Tensor
    c_out: Tensor


class Precomputed:
    """The tables of one stream."""

    def __init__(self, model: Model, width: int, height: int) -> None:
        self._device, self._shape = model.device, model.latent_shape(width, height)
        self._noises: Kept[Tensor] = Kept()
        self._rows: Kept[Rows] = Kept()

    def noises(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        """ε₁ … εₙ of the seeds, (n, C, h, w) float32."""
        return self._noises.get(lambda: noise(seeds, mix, steps, self._shape).to(self._device), seeds, mix, steps)

    def mixed(self, looks: Mixture, steps: int) -> Tensor:
        """ε₁ … εₙ of several looks in one, spherically by their shares."""
        noises, total = None, 0.0
        for look, share in looks:
            own = self.noises((int(look["/seed"]), int(look["/seed/2"])), float(look["/seed/mix"]), steps)
            total += share
            noises = own if noises is None or noises is own else slerp(noises, own, share / total, dims=(1, 2, 3))
        assert noises is not None
        return noises

    def rows(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> Rows:
        """The rows of a call: the i-th step holds for sizes[i] of them, the last ``negatives`` are denoised once more."""
        return self._rows.get(lambda: self._made(steps, sizes, negatives), steps, sizes, negatives)

    def _made(self, steps: tuple[Step, ...], sizes: tuple[int, ...], negatives: int) -> Rows:
        rows = [(s.t, s.a, s.b, s.c_skip, s.c_out) for s, size in zip(steps, sizes, strict=True) for _ in range(size)]
        t, a, b, c_skip, c_out = torch.tensor(rows, dtype=torch.float32).T[..., None, None, None].to(self._device).unbind(0)
        every = torch.arange(len(rows), device=self._device)
        index = torch.cat([every, every[len(rows) - negatives :]]) if negatives else slice(None)
        return Rows(index, t[index].flatten(), a[index], b[index], a, c_skip, c_out)
