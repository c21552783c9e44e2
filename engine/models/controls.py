"""The ControlNets of one denoiser call, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Controls:
    """The controls of one denoiser call: nets, their pictures (rows, 3, H, W) in 0..1, and the weight of each row, (rows, 1, 1, 1)."""

    nets: tuple[Any, ...]
    pictures: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def rows(self, rows: Tensor | slice) -> Controls:
        """The same for chosen rows."""
        return Controls(self.nets, tuple(p[rows] for p in self.pictures), tuple(w[rows] for w in self.weights))

    def residuals(self, x: Tensor, t: Tensor, tokens: Tensor, added: dict[str, Any]) -> dict[str, Any]:
        """What they add inside a U-Net, summed, as its keyword arguments: to each down block's outputs and to the middle, for all rows."""
        down: list[Tensor] = []
        middle = x.new_zeros(())
        for net, picture, weight in zip(self.nets, self.pictures, self.weights, strict=True):
            parts, centre = net(x, t, tokens, controlnet_cond=picture.to(x.dtype), return_dict=False, **added)
            weight = weight.to(x.dtype)
            weighed = [part * weight for part in parts]
            down = [one + before for one, before in zip(weighed, down, strict=True)] if down else weighed
            middle = centre * weight + middle
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
