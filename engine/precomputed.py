"""What the hot path looks up instead of computing: noises and coefficients, kept on the device for as long as they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.models import Model
from engine.schedule import Step, noise

MOST = 64


class Precomputed:
    """The tables of one stream."""

    def __init__(self, model: Model, width: int, height: int) -> None:
        self._device, self._shape = model.device, model.latent_shape(width, height)
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def noises(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        """ε₁ … εₙ of the seeds, (n, C, h, w) float32."""
        return self._once(("noise", seeds, mix, steps), lambda: noise(seeds, mix, steps, self._shape).to(self._device))

    def coefficients(self, steps: tuple[Step, ...], sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """t, a, b, c_skip, c_out of every row, (rows, 1, 1, 1) each: the i-th step holds for sizes[i] rows."""

        def made() -> Tensor:
            rows = [(s.t, s.a, s.b, s.c_skip, s.c_out) for s, size in zip(steps, sizes, strict=True) for _ in range(size)]
            return torch.tensor(rows, dtype=torch.float32).T[..., None, None, None].to(self._device)

        return self._once((steps, sizes), made).unbind(0)

    def _once(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            if len(self._kept) > MOST:
                self._kept.clear()
            self._kept[key] = make()
        return self._kept[key]
