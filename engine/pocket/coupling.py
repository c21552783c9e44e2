"""From which noise which picture: what makes one step from pure noise sharp.

Trained on every pairing of noise and picture, a denoiser answers pure noise with the mean of all pictures that a
caption allows: a blur, which distillation must then undo. Here the noisiest timesteps see a fixed pairing instead:
each family has four variants of its picture, and two signs read off the noise say which one belongs to it. The
answer to pure noise is then one picture, not a mean (the coupling of rectified flows, arXiv 2209.03003, with the
pairs given rather than learnt). Below ``FLOOR`` every pairing is seen, as usual.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.pocket.captions import Look
from engine.pocket.families import FAMILIES

FLOOR = 960  # the lowest training timestep that sees only coupled pairs
VARIANTS = 4
_NAMES = tuple(FAMILIES)


def variant_rng(look: Look, variant: int) -> np.random.Generator:
    """The generator that draws ``variant`` of a look: its family's, whatever its colours."""
    return np.random.default_rng((77, _NAMES.index(look.family), variant))


def signs(noise: Tensor) -> Tensor:
    """(B, C, h, w) → (B, 2) bool: is the noise larger on the left than on the right, on the top than at the bottom."""
    height, width = noise.shape[-2:]
    left = noise[..., : width // 2].sum((1, 2, 3)) - noise[..., width // 2 :].sum((1, 2, 3))
    top = noise[..., : height // 2, :].sum((1, 2, 3)) - noise[..., height // 2 :, :].sum((1, 2, 3))
    return torch.stack([left > 0, top > 0], -1)


def coupled_noise(noise: Tensor, variants: Tensor) -> Tensor:
    """``noise`` mirrored where needed so that its signs name ``variants`` (B,) in 0..3: still Gaussian, now the right one."""
    wanted = torch.stack([variants % 2 == 1, variants // 2 == 1], -1)
    turn = signs(noise) != wanted
    noise = torch.where(turn[:, 0].view(-1, 1, 1, 1), noise.flip(-1), noise)
    return torch.where(turn[:, 1].view(-1, 1, 1, 1), noise.flip(-2), noise)
