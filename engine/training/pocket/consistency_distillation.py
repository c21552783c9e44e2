"""Stage 3 of the pocket model's training: latent consistency distillation, so that 1 to 4 steps are enough.

Luo et al., "Latent Consistency Models" (arXiv 2310.04378): the student's answer at t must equal its moving average's
answer one guided DDIM step of the teacher further on. Guidance is baked in. Coupled and restyled rows have one correct
answer, so they stay a regression.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from engine.training.loop import ExponentialMovingAverage, Limit, LinearDecay, TrainingLoop, warmed_up_decay
from engine.training.pocket.dataset import LatentDataset
from engine.training.pocket.diffusion import EMA_DECAY, CaptionEncoder, NoiseTables, predict_velocity
from engine.training.pocket.noise_pairing import FIRST_COUPLED_TIMESTEP

TARGET_EMA_DECAY = 0.95
TEACHER_STRIDE = 20  # training timesteps of one teacher step: 1000 / 50


class ConsistencyFunction(NoiseTables):
    """f(x, t) of the consistency model, and the teacher's guided DDIM step.

    Adds tables of the boundary coefficients c_skip and c_out to those of ᾱ.
    """

    def __init__(self, device: str, sigma: float = 0.5, scale: float = 10.0) -> None:
        super().__init__(device)
        s = torch.arange(1000, device=device) * scale
        self.c_skip = sigma**2 / (s**2 + sigma**2)
        self.c_out = s / (s**2 + sigma**2).sqrt()

    def predict_clean(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return F = √ᾱ·x − √(1−ᾱ)·v, (B, C, h, w) float32."""
        v = predict_velocity(denoiser, x, t, condition)
        return self.lookup(self.root_a, t) * x - self.lookup(self.root_b, t) * v

    def evaluate(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return f(x, t) = c_skip·x + c_out·F; x itself where t is below 0, the clean end."""
        F = self.predict_clean(denoiser, x, t.clamp(min=0), condition)
        f = self.lookup(self.c_skip, t) * x + self.lookup(self.c_out, t) * F
        return torch.where((t < 0).view(-1, 1, 1, 1), x, f)

    def teacher_step(
        self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, pair: Tensor, guidance: Tensor
    ) -> Tensor:
        """Take one DDIM step from t to t − TEACHER_STRIDE under classifier-free guidance.

        ``pair`` (2B, L, D) holds the empty embeddings, then the captions'. ``guidance`` is (B,).
        """
        empty, captioned = self.predict_clean(denoiser, torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
        z = empty + guidance.view(-1, 1, 1, 1) * (captioned - empty)
        noise = (x - self.lookup(self.root_a, t) * z) / self.lookup(self.root_b, t)
        return torch.where((t < TEACHER_STRIDE).view(-1, 1, 1, 1), z, self.add_noise(z, noise, t - TEACHER_STRIDE))


def train(
    denoiser: UNet2DConditionModel,
    encoder: CaptionEncoder,
    data: LatentDataset,
    limit: Limit,
    seed: int,
    rows: tuple[int, int, int],
    guidance: tuple[float, float] = (1.5, 3.0),
    peak: float = 3e-4,
) -> None:
    """Distil ``denoiser`` in place until ``limit``; it ends as its moving average. The text encoder does not change."""
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    function = ConsistencyFunction(device)
    teacher = copy.deepcopy(denoiser).requires_grad_(False)
    target_denoiser = copy.deepcopy(denoiser).requires_grad_(False)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    free = rows[0]
    with torch.no_grad():
        empty = encoder([""])

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = data.batch(rows, rng, device)
        t = batch.t.clone()
        t[:free] = torch.randint(1, FIRST_COUPLED_TIMESTEP // TEACHER_STRIDE + 1, (free,), device=device)
        t[:free] = t[:free] * TEACHER_STRIDE - 1
        x = function.add_noise(batch.source, batch.noise, t)
        with torch.no_grad():
            condition = encoder(batch.captions)
            w = torch.empty(free, device=device).uniform_(*guidance)
            pair = torch.cat([empty.expand(free, -1, -1), condition[:free]])
            stepped = function.teacher_step(teacher, x[:free], t[:free], pair, w)
            target = function.evaluate(target_denoiser, stepped, t[:free] - TEACHER_STRIDE, condition[:free])
            target = torch.cat([target, batch.target[free:]])
        error = function.evaluate(denoiser, x, t, condition) - target
        consistency = (error[:free].square() + 0.01**2).sqrt().mean()
        regression = (error[free:] / function.lookup(function.root_b, t[free:])).square().mean()
        return consistency + regression, {"consistency": consistency, "regression": regression}

    average = ExponentialMovingAverage(denoiser.parameters(), warmed_up_decay(EMA_DECAY))
    target_average = ExponentialMovingAverage(
        denoiser.parameters(), warmed_up_decay(TARGET_EMA_DECAY), average=target_denoiser.parameters()
    )
    loop = TrainingLoop(
        "distillation", optimiser, denoiser.parameters(), LinearDecay(peak, 100, 0.5), [average, target_average]
    )
    loop.run(limit, compute_loss)
