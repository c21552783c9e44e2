"""Timesteps and their coefficients, for ε-, v- and flow-prediction.

Every noised latent is x = a·z + b·ε. For ε- and v-models a = √ᾱ(t) and b = √(1−ᾱ(t)); for flow matching
a = 1−σ and b = σ with t = 1000·σ; for TrigFlow a = cos θ and b = sin θ with t = 1000·θ/(π/2). A consistency-
distilled model answers c_out·F + c_skip·x (Luo et al., arXiv 2310.04378), every other one F itself.

From step to step x' = a'·D + r·ε̂ + n·ε: the noise that the model saw, ε̂ = (x − a·D)/b, reused by r, and n of new noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.noise_schedule import NoiseSchedule
from engine.shared.parameter import InvalidValue

#: TrigFlow's second of two timesteps, in radians: where SANA-Sprint was found best.
TRIGFLOW_SECOND_ANGLE = 1.3


@dataclass(frozen=True)
class Step:
    """One timestep with its coefficients; ``reused_noise`` and ``new_noise`` are those with which a frame enters it."""

    t: float
    a: float
    b: float
    c_skip: float
    c_out: float
    reused_noise: float
    new_noise: float


def spaced_timesteps(schedule: NoiseSchedule, steps: int, strength: float, tokens: int = 0) -> list[float]:
    """Return ``steps`` timesteps from the one that ``strength`` (0 to 1) reaches, evenly downward, as LCM places them.

    Strength 1 starts at the last training timestep; 0.5 halfway. A flow's are bent by its shift:
    σ' = s·σ / (1 + (s−1)·σ). The first is at least ``steps`` so that every step has its own timestep. ``tokens`` is the
    number of tokens that a transformer makes of the picture.
    """
    total = 1000 if schedule.alphas is None else len(schedule.alphas)
    first = min(max(round(strength * total), steps), total)
    if schedule.alphas is not None:
        return [float(first - 1 - first * i // steps) for i in range(steps)]
    sigmas = [first / total * (steps - i) / steps for i in range(steps)]
    if schedule.trigonometric:
        if steps == 2:
            sigmas[1] = sigmas[0] * TRIGFLOW_SECOND_ANGLE / (math.pi / 2)
        return [1000.0 * s for s in sigmas]
    shift = schedule.dynamic_shift(tokens, steps) if schedule.dynamic_shift else schedule.shift
    return [1000.0 * shift * s / (1.0 + (shift - 1.0) * s) for s in sigmas]


def plan_steps(
    schedule: NoiseSchedule, steps: int, strength: float, explicit: str = "", tokens: int = 0, eta: float = 1.0
) -> tuple[Step, ...]:
    """Return the steps of a frame from most to least noise: the ``explicit`` timesteps, or spaced ones.

    ``eta`` is the share of new noise, see ``noise_split``. Raises InvalidValue where an explicit timestep lies outside
    the model's range.
    """
    timesteps = [float(part) for part in explicit.split()] or spaced_timesteps(schedule, steps, strength, tokens)
    if max(timesteps) > schedule.last_timestep:
        raise InvalidValue(
            f"/schedule goes to {max(timesteps):g}, but this model's last timestep is {schedule.last_timestep}"
        )
    first = timesteps[0]
    return tuple(
        Step(t, *schedule.ab(t), *schedule.boundary(t), *noise_split(schedule, t, eta if t != first else 1.0))
        for t in timesteps
    )


def noise_split(schedule: NoiseSchedule, t: float, eta: float) -> tuple[float, float]:
    """Return how much of the noise at ``t`` is reused and how much is new, (r, n) with r² + n² = b².

    η = 1 renews all of it (as LCM and the stream batch do), η = 0 none (DDIM, and Euler on a flow). Between them it
    follows Zheng et al., "Trajectory Consistency Distillation" (arXiv 2402.19159), algorithm 3: down to (1−η)·t, then
    up to t.
    """
    a, b = schedule.ab(t)
    if eta >= 1.0:
        return 0.0, b
    if eta <= 0.0:
        return b, 0.0
    s = (1.0 - eta) * t
    a_s, b_s = schedule.ab(s if schedule.alphas is None else math.floor(s))
    reused = a / a_s * b_s
    return reused, math.sqrt(max(0.0, b * b - reused * reused))


def clean_coefficients(prediction: str, a: float, b: float) -> tuple[float, float]:
    """Return the coefficients of F, the clean latent that the model's output means for x: of x and of the output.

    ε: F = (x − b·ε̂)/a.  v: F = a·x − b·v.  flow: F = x − σ·v.
    """
    if prediction == "epsilon":
        return 1.0 / a, -b / a
    return (a if prediction == "v" else 1.0), -b


def advance(x: Tensor, D: Tensor, step: Step, next_step: Step, epsilon: Tensor) -> Tensor:
    """Return x' = a'·D + r·ε̂ + n·ε, with ε̂ = (x − a·D)/b the noise that ``x`` held at its step. All (B, C, h, w)."""
    result = next_step.a * D + next_step.new_noise * epsilon
    if next_step.reused_noise:
        return result + next_step.reused_noise / step.b * (x - step.a * D)
    return result


def noise(seeds: tuple[int, int], mix: float, steps: int, shape: tuple[int, int, int]) -> Tensor:
    """Return the noises ε₁ … εₙ of a seed, (steps, C, h, w) float32 on the CPU; two seeds are mixed spherically.

    One tensor drawn at once from ``torch.Generator().manual_seed(seed)``: the same on every device.
    """
    first = torch.randn((steps, *shape), generator=torch.Generator().manual_seed(seeds[0]))
    if mix <= 0.0 or seeds[0] == seeds[1]:
        return first
    second = torch.randn((steps, *shape), generator=torch.Generator().manual_seed(seeds[1]))
    return slerp(first, second, mix, dims=(1, 2, 3)) if mix < 1.0 else second


def slerp(one: Tensor, two: Tensor, mix: float | Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Return the spherical interpolation over ``dims``; the length changes linearly (Shoemake 1985)."""
    norm_one, norm_two = (torch.linalg.vector_norm(side, dim=dims, keepdim=True) for side in (one, two))
    u, v = one / norm_one.clamp(min=1e-12), two / norm_two.clamp(min=1e-12)
    angle = torch.arccos((u * v).sum(dim=dims, keepdim=True).clamp(-0.9999, 0.9999))
    arc = (torch.sin((1 - mix) * angle) * u + torch.sin(mix * angle) * v) / torch.sin(angle)
    return arc * (norm_one * (1 - mix) + norm_two * mix)
