"""Stage 3 of the pocket model's training: latent consistency distillation, so that 1 to 4 steps are enough.

Luo et al., "Latent Consistency Models" (arXiv 2310.04378): the student's answer at t must equal its averaged self's answer at
the point one guided DDIM step of the teacher further on. Guidance is baked in. Coupled and restyled rows have one right
answer, so they go on as regression.
"""

from __future__ import annotations

import copy
import logging
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from engine.training.pocket.dataset import Lessons
from engine.training.pocket.diffusion import Average, Encoder, Noising, predicted
from engine.training.pocket.noise_pairing import FLOOR

log = logging.getLogger(__name__)
SKIP = 20  # training timesteps of one teacher step: 1000 / 50


class Consistency(Noising):
    """f(x, t) of the consistency model and the teacher's guided DDIM step, on tables of ᾱ and the boundary coefficients."""

    def __init__(self, device: str, sigma: float = 0.5, scale: float = 10.0) -> None:
        super().__init__(device)
        s = torch.arange(1000, device=device) * scale
        self.c_skip = sigma**2 / (s**2 + sigma**2)
        self.c_out = s / (s**2 + sigma**2).sqrt()

    def clean(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """F = √ᾱ·x − √(1−ᾱ)·v, (B, C, h, w) float32."""
        return self.at(self.root_a, t) * x - self.at(self.root_b, t) * predicted(denoiser, x, t, condition)

    def consistent(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """f(x, t) = c_skip·x + c_out·F; x itself where t is below 0, the clean end."""
        f = self.at(self.c_skip, t) * x + self.at(self.c_out, t) * self.clean(denoiser, x, t.clamp(min=0), condition)
        return torch.where((t < 0).view(-1, 1, 1, 1), x, f)

    def teacher_step(
        self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, pair: Tensor, guidance: Tensor
    ) -> Tensor:
        """One DDIM step from t to t − SKIP under classifier-free guidance. ``pair``: empty then real embeddings, (2B, L, D)."""
        empty, real = self.clean(denoiser, torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
        z = empty + guidance.view(-1, 1, 1, 1) * (real - empty)
        noise = (x - self.at(self.root_a, t) * z) / self.at(self.root_b, t)
        return torch.where((t < SKIP).view(-1, 1, 1, 1), z, self.noised(z, noise, t - SKIP))


def train(
    denoiser: UNet2DConditionModel,
    encoder: Encoder,
    data: Lessons,
    minutes: float,
    seed: int,
    rows: tuple[int, int, int],
    guidance: tuple[float, float] = (1.5, 3.0),
    peak: float = 3e-4,
) -> None:
    """Distils ``denoiser`` in place for ``minutes``; it ends as the moving average. The text encoder stays as it is."""
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    algebra = Consistency(device)
    teacher = copy.deepcopy(denoiser).requires_grad_(False)
    target_net = copy.deepcopy(denoiser).requires_grad_(False)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    target, average = Average([denoiser], 0.95), Average([denoiser], 0.998)
    target.kept = list(target_net.parameters())
    start, step, shown = time.monotonic(), 0, np.zeros(2)
    free = rows[0]
    with torch.no_grad():
        nothing = encoder([""])
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100) * min(1.0, (1.0 - done) / 0.5 + 0.02)
        batch = data.batch(rows, rng, device)
        t = batch.t.clone()
        t[:free] = torch.randint(1, FLOOR // SKIP + 1, (free,), device=device) * SKIP - 1
        x = algebra.noised(batch.source, batch.noise, t)
        with torch.no_grad():
            condition = encoder(batch.captions)
            w = torch.empty(free, device=device).uniform_(*guidance)
            pair = torch.cat([nothing.expand(free, -1, -1), condition[:free]])
            nearer = algebra.teacher_step(teacher, x[:free], t[:free], pair, w)
            goal = algebra.consistent(target_net, nearer, t[:free] - SKIP, condition[:free])
            goal = torch.cat([goal, batch.target[free:]])
        error = algebra.consistent(denoiser, x, t, condition) - goal
        consistency = (error[:free].square() + 0.01**2).sqrt().mean()
        regression = (error[free:] / algebra.at(algebra.root_b, t[free:])).square().mean()
        loss = consistency + regression
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimiser.step()
        target.update(step)
        average.update(step)
        shown += (np.array([consistency.item(), regression.item()]) - shown) * max(0.02, 1 / (step + 1))
        if step % 100 == 0:
            log.info("distillation step %d, %.0f %%, consistency %.4f, regression %.4f", step, done * 100, *shown)
        step += 1
    average.copy_back()
