"""Heads that help the denoiser learn, dropped afterwards: where each cell lies, what goes there, and what the caption names.

Without them this small U-Net answers pure noise with colour alone: nothing in its input says what is left and what is right, and
the text says too faintly which family is meant. Waves of the coordinates, and not only the coordinates, are asked for, because
shapes as fine as stripes are made of them (Tancik et al., "Fourier Features", arXiv 2006.10739).
"""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from engine.training.pocket.captions import MOODS, Look
from engine.training.pocket.palette import COLOURS
from engine.training.pocket.patterns import FAMILIES

WAVES = (0.5, 1, 2, 4)  # periods over half the picture


class PositionHeads(nn.Module):
    """1×1 heads on the lower blocks: sines and cosines of each cell's place, and the latent there, made small."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        super().__init__()
        high, middle, low = denoiser.config["block_out_channels"]
        outputs = 4 * len(WAVES) + int(denoiser.config["out_channels"])
        blocks = [denoiser.down_blocks[2], denoiser.mid_block, *denoiser.up_blocks]
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in (low, low, low, middle, high))
        self._hooks = [block.register_forward_hook(self._keep) for block in blocks]
        self._seen: list[Tensor] = []

    def _keep(self, _block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._seen.append(output[0] if isinstance(output, tuple) else output)

    def losses(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the places and of ``target`` (B, C, h, w), made small, from the features of the last forward pass."""
        places, pictures = [], []
        for head, features in zip(self.heads, self._seen, strict=True):
            said = head(features.float())
            height, width = features.shape[-2:]
            waves = torch.cat([_waves(height, features.device)[:, :, None].expand(-1, -1, width),
                               _waves(width, features.device)[:, None, :].expand(-1, height, -1)])  # fmt: skip
            places.append((said[:, : len(waves)] - waves).square().mean())
            pictures.append((said[:, len(waves) :] - F.adaptive_avg_pool2d(target, (height, width))).square().mean())
        self._seen.clear()
        return torch.stack(places).mean(), torch.stack(pictures).mean()

    def remove(self) -> None:
        """Takes the heads off the denoiser."""
        for hook in self._hooks:
            hook.remove()


class CaptionHead(nn.Module):
    """A head on the text's part of the time embedding that must tell family, colours and mood: so they can steer every layer at once."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        super().__init__()
        self.parts = (len(FAMILIES), len(COLOURS), len(MOODS) + 1)
        self.head = nn.Linear(denoiser.add_embedding.norm2.normalized_shape[0], sum(self.parts))
        self._hook = denoiser.add_embedding.register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _inputs: object, output: Tensor) -> None:
        self._seen = output

    def loss(self, looks: list[Look], captions: list[str]) -> Tensor:
        """Cross entropy of what each caption of the last forward pass names; empty captions count nothing."""
        told = torch.tensor([bool(text) for text in captions], device=self._seen.device)
        families = torch.tensor([list(FAMILIES).index(look.family) for look in looks], device=told.device)
        colours = torch.tensor(
            [[float(name in look.colours) for name in COLOURS] for look in looks], device=told.device
        )
        moods = torch.tensor([["", *MOODS].index(look.mood) for look in looks], device=told.device)
        family, colour, mood = self.head(self._seen.float())[told].split(self.parts, 1)
        of_colour = F.binary_cross_entropy_with_logits(colour, colours[told])
        return F.cross_entropy(family, families[told]) + 4 * of_colour + 0.3 * F.cross_entropy(mood, moods[told])

    def remove(self) -> None:
        """Takes the head off the denoiser."""
        self._hook.remove()


def _waves(cells: int, device: torch.device) -> Tensor:
    """(2 · waves, cells): sines and cosines along one axis; those that the cells cannot show are 0."""
    axis = (torch.arange(cells, device=device) + 0.5) / cells * 2 - 1
    shown = [k for k in WAVES if 2 * k < cells]
    rows = [
        f(math.pi * k * axis) if k in shown else torch.zeros_like(axis) for k in WAVES for f in (torch.sin, torch.cos)
    ]
    return torch.stack(rows)
