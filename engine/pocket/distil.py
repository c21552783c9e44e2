"""Stage 3 of the pocket model's training: latent consistency distillation, so that 1 to 4 steps are enough.

Luo et al., "Latent Consistency Models" (arXiv 2310.04378): the student's answer at t must equal its
averaged self's answer at the point one guided DDIM step of the teacher further on. Guidance is baked in.
"""

from __future__ import annotations

import copy
import logging
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from engine.pocket.diffusion import Average, Encoder, LatentSet, new_scheduler

log = logging.getLogger(__name__)
SKIP = 20  # training timesteps of one teacher step: 1000 / 50


class Consistency:
    """f(x, t) of the consistency model and the teacher's guided DDIM step, on tables of ᾱ and the boundary coefficients."""

    def __init__(self, device: str, sigma: float = 0.5, scale: float = 10.0) -> None:
        alphas = new_scheduler().alphas_cumprod.to(device)
        self.root_a, self.root_b = alphas.sqrt(), (1 - alphas).sqrt()
        s = torch.arange(1000, device=device) * scale
        self.c_skip = sigma**2 / (s**2 + sigma**2)
        self.c_out = s / (s**2 + sigma**2).sqrt()

    def at(self, table: Tensor, t: Tensor) -> Tensor:
        return table[t.clamp(min=0)].view(-1, 1, 1, 1)

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.at(self.root_a, t) * z + self.at(self.root_b, t) * noise

    def clean(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """F = √ᾱ·x − √(1−ᾱ)·v, (B, C, h, w) float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            v = denoiser(x.to(memory_format=torch.channels_last), t, condition).sample.float()
        return self.at(self.root_a, t) * x - self.at(self.root_b, t) * v

    def consistent(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """f(x, t) = c_skip·x + c_out·F; x itself where t is below 0, the clean end."""
        f = self.at(self.c_skip, t) * x + self.at(self.c_out, t) * self.clean(denoiser, x, t.clamp(min=0), condition)
        return torch.where((t < 0).view(-1, 1, 1, 1), x, f)

    def teacher_step(self, denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, pair: Tensor, guidance: Tensor) -> Tensor:
        """One DDIM step from t to t − SKIP under classifier-free guidance. ``pair``: empty then real embeddings, (2B, L, D)."""
        empty, real = self.clean(denoiser, torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
        z = empty + guidance.view(-1, 1, 1, 1) * (real - empty)
        noise = (x - self.at(self.root_a, t) * z) / self.at(self.root_b, t)
        return torch.where((t < SKIP).view(-1, 1, 1, 1), z, self.noised(z, noise, t - SKIP))


def train(
    denoiser: UNet2DConditionModel,
    encoder: Encoder,
    data: LatentSet,
    minutes: float,
    seed: int,
    batch: int,
    guidance: tuple[float, float] = (2.0, 4.0),
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
    start, step, shown = time.monotonic(), 0, 0.0
    with torch.no_grad():
        nothing = encoder([""])
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100) * min(1.0, (1.0 - done) / 0.5 + 0.02)
        z, captions = data.batch(batch, rng, device)
        # A third of the rows start from the noisiest timestep, where every few-step schedule starts.
        t = (torch.randint(0, 50, (batch,), device=device) + 1) * SKIP - 1
        t[: batch // 3] = 999
        noise = torch.randn_like(z)
        x = algebra.noised(z, noise, t)
        with torch.no_grad():
            condition = encoder(captions)
            w = torch.empty(batch, device=device).uniform_(*guidance)
            pair = torch.cat([nothing.expand(batch, -1, -1), condition])
            nearer = algebra.teacher_step(teacher, x, t, pair, w)
            goal = algebra.consistent(target_net, nearer, t - SKIP, condition)
        error = algebra.consistent(denoiser, x, t, condition) - goal
        loss = (error.square() + 0.01**2).sqrt().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimiser.step()
        target.update(step)
        average.update(step)
        shown = 0.98 * shown + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 0:
            log.info("distillation step %d, %.0f %%, loss %.4f", step, done * 100, shown)
        step += 1
    average.copy_back()
