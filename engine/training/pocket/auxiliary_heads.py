"""Heads that help the denoiser learn and are dropped afterwards: positions, coarse latents, caption contents.

Without them this small U-Net answers pure noise with colour alone. Nothing in its input distinguishes left from right,
and the text is too weak a signal for the pattern. The heads predict waves of the coordinates and not only the
coordinates, because shapes as fine as stripes need them (Tancik et al., "Fourier Features", arXiv 2006.10739).
"""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from engine.image.ops import average_cells
from engine.training.pocket.captions import MOOD_WORDS, PatternSpec
from engine.training.pocket.palette import COLOURS
from engine.training.pocket.patterns import PATTERNS

WAVES = (0.5, 1, 2, 4)  # periods over half the picture


class PositionHeads(nn.Module):
    """1×1 heads on the lower blocks: sines and cosines of each cell's position, and the coarse target latent there."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        super().__init__()
        high, middle, low = denoiser.config["block_out_channels"]
        outputs = 4 * len(WAVES) + int(denoiser.config["out_channels"])
        blocks = [denoiser.down_blocks[2], denoiser.mid_block, *denoiser.up_blocks]
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in (low, low, low, middle, high))
        self._hooks = [block.register_forward_hook(self._record) for block in blocks]
        self._features: list[Tensor] = []

    def _record(self, _block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._features.append(output[0] if isinstance(output, tuple) else output)

    def losses(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared errors of positions and of ``target`` (B, C, h, w) in the last forward pass.

        Each head's target is averaged down to that block's size. Raises ValueError unless a forward pass came before.
        """
        position_losses, latent_losses = [], []
        for head, features in zip(self.heads, self._features, strict=True):
            prediction = head(features.float())
            height, width = features.shape[-2:]
            rows = _waves(height, features.device)[:, :, None].expand(-1, -1, width)
            columns = _waves(width, features.device)[:, None, :].expand(-1, height, -1)
            waves = torch.cat([rows, columns])
            coarse = average_cells(target, height, width)
            position_losses.append((prediction[:, : len(waves)] - waves).square().mean())
            latent_losses.append((prediction[:, len(waves) :] - coarse).square().mean())
        self._features.clear()
        return torch.stack(position_losses).mean(), torch.stack(latent_losses).mean()

    def remove(self) -> None:
        """Remove the hooks from the denoiser."""
        for hook in self._hooks:
            hook.remove()


class CaptionHead(nn.Module):
    """A head on the embedding of the text that joins the timestep's; it predicts pattern, colours and mood.

    That embedding reaches every layer, so the text can then steer all of them. ``embedder`` is the denoiser's module
    that computes it, (B, width).
    """

    def __init__(self, embedder: nn.Module, width: int) -> None:
        super().__init__()
        self.sizes = (len(PATTERNS), len(COLOURS), len(MOOD_WORDS) + 1)
        self.head = nn.Linear(width, sum(self.sizes))
        self._hook = embedder.register_forward_hook(self._record)

    def _record(self, _block: nn.Module, _inputs: object, output: Tensor) -> None:
        self._embedding = output

    def loss(self, specs: list[PatternSpec], captions: list[str]) -> Tensor:
        """Return the cross entropy of the captions' contents after the last forward pass, without empty captions."""
        captioned = torch.tensor([bool(text) for text in captions], device=self._embedding.device)
        device = captioned.device
        patterns = torch.tensor([list(PATTERNS).index(spec.pattern) for spec in specs], device=device)
        colours = torch.tensor([[float(name in spec.colours) for name in COLOURS] for spec in specs], device=device)
        moods = torch.tensor([["", *MOOD_WORDS].index(spec.mood) for spec in specs], device=device)
        pattern, colour, mood = self.head(self._embedding.float())[captioned].split(self.sizes, 1)
        colour_loss = F.binary_cross_entropy_with_logits(colour, colours[captioned])
        mood_loss = F.cross_entropy(mood, moods[captioned])
        return F.cross_entropy(pattern, patterns[captioned]) + 4 * colour_loss + 0.3 * mood_loss

    def remove(self) -> None:
        """Remove the hook from the denoiser."""
        self._hook.remove()


def _waves(cells: int, device: torch.device) -> Tensor:
    """Return (2 · waves, cells): sines and cosines along one axis, 0 where they are too fine for the cells."""
    axis = (torch.arange(cells, device=device) + 0.5) / cells * 2 - 1
    resolved = [k for k in WAVES if 2 * k < cells]
    rows = [
        f(math.pi * k * axis) if k in resolved else torch.zeros_like(axis)
        for k in WAVES
        for f in (torch.sin, torch.cos)
    ]
    return torch.stack(rows)
