"""ControlNetInputs: the ControlNets of one denoiser call, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ControlNetInputs:
    """ControlNets, their pictures (rows, 3, H, W) in 0..1, and the weight of each row, (rows, 1, 1, 1)."""

    nets: tuple[Any, ...]
    pictures: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def rows(self, rows: Tensor | slice) -> ControlNetInputs:
        """Return the inputs of chosen rows."""
        return ControlNetInputs(self.nets, tuple(p[rows] for p in self.pictures), tuple(w[rows] for w in self.weights))

    def residuals(self, x: Tensor, t: Tensor, tokens: Tensor, added: dict[str, Any]) -> dict[str, Any]:
        """Run the nets and return the sum of their residuals for all rows, as keyword arguments of a U-Net.

        There is one residual for each down block's output and one for the middle block.
        """
        down: list[Tensor] = []
        middle = x.new_zeros(())
        for net, picture, weight in zip(self.nets, self.pictures, self.weights, strict=True):
            outputs, centre = net(x, t, tokens, controlnet_cond=picture.to(x.dtype), return_dict=False, **added)
            weight = weight.to(x.dtype)
            weighted = [output * weight for output in outputs]
            down = [one + before for one, before in zip(weighted, down, strict=True)] if down else weighted
            middle = centre * weight + middle
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
