"""A denoiser with fewer and narrower layers learns to answer as a larger one does.

As in Kim et al., "BK-SDM" (arXiv 2305.15798): the smaller one starts from the layers that both have, and what it must match is the larger
one's answer and what comes out of each of its blocks, seen through a 1×1 convolution where that is wider (Romero et al., "FitNets",
arXiv 1412.6550). The larger one is distilled already, and so then is the smaller.
"""

from __future__ import annotations

import itertools
import logging
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from engine.training.pocket.dataset import Batch, Lessons
from engine.training.pocket.diffusion import Average, Encoder, Noising, predicted
from engine.training.pocket.noise_pairing import FLOOR

log = logging.getLogger(__name__)


class Blocks:
    """What comes out of the blocks of ``denoiser``, of the last forward pass."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
        self._seen: list[Tensor] = []
        self._hooks = [block.register_forward_hook(self._keep) for block in blocks]

    def _keep(self, _block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._seen.append(output[0] if isinstance(output, tuple) else output)

    def taken(self) -> list[Tensor]:
        """The features since the last call, a tensor a block."""
        seen, self._seen = self._seen, []
        return seen

    def remove(self) -> None:
        """Takes the hooks off the denoiser."""
        for hook in self._hooks:
            hook.remove()


def carry_over(larger: UNet2DConditionModel, smaller: UNet2DConditionModel) -> list[str]:
    """Copies the weights of the layers that both have, of the first channels where a level is narrower; returns the names left behind.

    Raises ValueError where the smaller one has a weight that the larger one lacks, or has in a shape that its levels do not explain.
    """
    own, given = smaller.state_dict(), larger.state_dict()
    levels = [*zip(larger.config["block_out_channels"], smaller.config["block_out_channels"], strict=True)]
    taken: dict[str, Tensor] = {}
    if larger.time_proj.num_channels != smaller.time_proj.num_channels:
        given["time_embedding.linear_1.weight"] = _of_waves(larger, smaller)
    for name, value in own.items():
        kept = (
            [_kept(*sides, levels) for sides in zip(given[name].shape, value.shape, strict=True)]
            if name in given
            else [None]
        )
        if any(channels is None for channels in kept):
            raise ValueError(f"the larger denoiser has no {name} of that shape")
        taken[name] = given[name]
        for dim, channels in enumerate(kept):
            taken[name] = taken[name].index_select(dim, torch.tensor(channels))
    smaller.load_state_dict(taken)
    return [name for name in given if name not in own]


def _of_waves(larger: UNet2DConditionModel, smaller: UNet2DConditionModel) -> Tensor:
    """The first weight of the time embedding, for as many sines and cosines as ``smaller`` has: what comes nearest at every timestep."""
    t = torch.arange(1000)
    wanted = larger.time_proj(t) @ larger.time_embedding.linear_1.weight.detach().T
    return torch.linalg.lstsq(smaller.time_proj(t), wanted).solution.T


def _kept(wide: int, narrow: int, levels: list[tuple[int, int]]) -> list[int] | None:
    """Which of ``wide`` channels ``narrow`` ones are: a level's, or two levels' one behind the other, the deeper one's first."""
    if wide == narrow or ((wide, narrow) in levels and wide > narrow):
        return [*range(narrow)]
    for (first, of_first), (second, of_second) in itertools.product(reversed(levels), levels):
        if (first + second, of_first + of_second) == (wide, narrow) and of_first <= first and of_second <= second:
            return [*range(of_first), *range(first, first + of_second)]
    return None


def _widened(larger: UNet2DConditionModel, smaller: UNet2DConditionModel) -> nn.ModuleList:
    """For each of the blocks of ``Blocks`` what makes the smaller one's features as many as the larger one's."""

    def widths(denoiser: UNet2DConditionModel) -> list[int]:
        high, middle, low = denoiser.config["block_out_channels"]
        return [high, middle, low, low, low, middle, high]

    pairs = zip(widths(smaller), widths(larger), strict=True)
    return nn.ModuleList([nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in pairs]).to(smaller.device)


def strayed(batch: Batch) -> tuple[Tensor, list[str]]:
    """Timesteps (B,) and captions of ``batch`` for a teacher that answers anything, as live inputs under any prompt at any strength.

    Restyled sources come at any timestep, and every second free picture has its neighbour's caption.
    """
    t, captions, first = batch.t.clone(), list(batch.captions), batch.free + batch.coupled
    t[first:] = torch.randint(100, FLOOR, (len(t) - first,)).to(t.device)
    for row in range(0, batch.free - 1, 2):
        captions[row] = batch.captions[row + 1]
    return t, captions


def train(
    larger: UNet2DConditionModel,
    smaller: UNet2DConditionModel,
    encoder: Encoder,
    data: Lessons,
    minutes: float,
    seed: int,
    rows: tuple[int, int, int],
    peak: float = 1e-3,
    of_features: float = 0.2,
) -> None:
    """Trains ``smaller`` in place for ``minutes``; it ends as the moving average. Captions' embeddings are the same for both.

    The loss is the mean squared difference of v, and ``of_features`` times that of the blocks' features, each over its own mean square.
    """
    device = str(smaller.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    noising = Noising(device)
    larger.requires_grad_(False)
    if device == "cpu":  # the plain products are faster to train through than the fused ones
        smaller.set_attn_processor(AttnProcessor())
    theirs, ours, widened = Blocks(larger), Blocks(smaller), _widened(larger, smaller)
    optimiser = torch.optim.AdamW(
        [*smaller.parameters(), *widened.parameters()], lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True
    )  # fmt: skip
    average = Average([smaller], 0.998)
    start, step, shown = time.monotonic(), 0, np.zeros(2)
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 20) * min(1.0, (1.0 - done) / 0.6 + 0.02)
        batch = data.batch(rows, rng, device)
        t, captions = strayed(batch)
        x = noising.noised(batch.source, batch.noise, t)
        with torch.no_grad():
            condition = encoder(captions)
            goal = predicted(larger, x, t, condition)
        answer = (predicted(smaller, x, t, condition) - goal).square().mean()
        pairs = zip(widened, ours.taken(), theirs.taken(), strict=True)
        features = torch.stack(
            [(w(a.float()) - b.float()).square().mean() / b.float().square().mean() for w, a, b in pairs]
        ).mean()
        optimiser.zero_grad(set_to_none=True)
        (answer + of_features * features).backward()
        torch.nn.utils.clip_grad_norm_(smaller.parameters(), 1.0)
        optimiser.step()
        average.update(step)
        shown += (np.array([answer.item(), features.item()]) - shown) * max(0.02, 1 / (step + 1))
        if step % 100 == 0:
            log.info("slimming step %d, %.0f %%, v %.4f, features %.4f", step, done * 100, *shown)
        step += 1
    theirs.remove()
    ours.remove()
    average.copy_back()
