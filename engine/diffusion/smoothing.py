"""Latent smoothing: a share of the last latent stays in the cells where the input has not moved."""

from __future__ import annotations

import torch
from torch import Tensor

#: Mean change of a latent cell, in the denoiser's unit range, that counts as motion.
MOTION_THRESHOLD = 0.15


class LatentSmoother:
    """The last input latent and the last output latent, (C, h, w) each."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Forget the last frame."""
        self._last = None

    def smooth(self, z: Tensor, D: Tensor, share: float) -> Tensor:
        """Return ``D`` (B, C, h, w) with ``share`` of the latent before it where the input's latent ``z`` is still."""
        if share <= 0.0:
            self.reset()
            return D
        smoothed = []
        for latent_in, latent_out in zip(z, D, strict=True):
            if self._last is not None:
                last_in, last_out = self._last
                change = (latent_in - last_in).abs().mean(0, keepdim=True)
                still = torch.exp(-((change / MOTION_THRESHOLD) ** 2))
                latent_out = torch.lerp(latent_out, last_out, share * still)
            self._last = (latent_in, latent_out)
            smoothed.append(latent_out)
        return torch.stack(smoothed)
