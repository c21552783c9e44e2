"""Timesteps and their coefficients, for ε-, v- and flow-prediction.

Every noised latent is x = a·z + b·ε. For ε- and v-models a = √ᾱ(t) and b = √(1−ᾱ(t)); for flow matching
a = 1−σ and b = σ with t = 1000·σ; for TrigFlow a = cos θ and b = sin θ with t = 1000·θ/(π/2). A consistency-
distilled model answers c_out·F + c_skip·x (Luo et al., arXiv 2310.04378), every other one F itself.

From step to step x' = a'·D + kept·ε̂ + fresh·ε: the noise that the model saw, ε̂ = (x − a·D)/b, and new noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.noise_schedule import NoiseSchedule
from engine.shared.parameter import InvalidValue


@dataclass(frozen=True)
class Step:
    """One slot's timestep and its coefficients; ``kept`` and ``fresh`` are of the noise with which a frame enters it."""

    t: float
    a: float
    b: float
    c_skip: float
    c_out: float
    kept: float
    fresh: float


def spaced_timesteps(noising: NoiseSchedule, steps: int, strength: float, tokens: int = 0) -> list[float]:
    """``steps`` timesteps from the one that ``strength`` (0 to 1) reaches, evenly downward, as the LCM sampler places them.

    Strength 1 starts at the last training timestep; 0.5 halfway. A flow's are bent by its shift:
    σ' = s·σ / (1 + (s−1)·σ). TrigFlow's second of two lies at 1.3 of π/2, where SANA-Sprint was found best.
    The first is at least ``steps`` so that every step has its own timestep. ``tokens``: a transformer's tokens of the picture.
    """
    total = 1000 if noising.alphas is None else len(noising.alphas)
    first = min(max(round(strength * total), steps), total)
    if noising.alphas is None:
        sigmas = [first / total * (steps - i) / steps for i in range(steps)]
        if noising.trigonometric:
            return [1000.0 * s for s in (sigmas if steps != 2 else [sigmas[0], sigmas[0] * 1.3 / (math.pi / 2)])]
        shift = noising.dynamic_shift(tokens, steps) if noising.dynamic_shift else noising.shift
        return [1000.0 * shift * s / (1.0 + (shift - 1.0) * s) for s in sigmas]
    return [float(first - 1 - first * i // steps) for i in range(steps)]


def plan(
    noising: NoiseSchedule, steps: int, strength: float, explicit: str = "", tokens: int = 0, eta: float = 1.0
) -> tuple[Step, ...]:
    """The steps of a frame from most to least noise: the ``explicit`` timesteps where given, else made ones.

    ``eta`` is the share of fresh noise, see ``shares``. Raises BadValue where an explicit timestep lies outside the model's range.
    """
    timesteps = [float(part) for part in explicit.split()] or spaced_timesteps(noising, steps, strength, tokens)
    if max(timesteps) > noising.last_timestep:
        raise InvalidValue(
            f"/schedule goes to {max(timesteps):g}, but this model's last timestep is {noising.last_timestep}"
        )
    first = timesteps[0]
    return tuple(
        Step(t, *noising.ab(t), *noising.boundary(t), *noise_split(noising, t, eta if t != first else 1.0))
        for t in timesteps
    )


def noise_split(noising: NoiseSchedule, t: float, eta: float) -> tuple[float, float]:
    """How much of the noise at ``t`` is the model's own and how much is fresh: kept and fresh, kept² + fresh² = b².

    η = 1 renews all of it (LCM's and the stream batch's own way), η = 0 none (DDIM, and Euler on a flow). Between them as in
    Zheng et al., "Trajectory Consistency Distillation" (arXiv 2402.19159), algorithm 3: down to (1−η)·t, then up to t.
    """
    a, b = noising.ab(t)
    if eta >= 1.0:
        return 0.0, b
    if eta <= 0.0:
        return b, 0.0
    s = (1.0 - eta) * t
    a_s, b_s = noising.ab(s if noising.alphas is None else math.floor(s))
    kept = a / a_s * b_s
    return kept, math.sqrt(max(0.0, b * b - kept * kept))


def clean_coefficients(prediction: str, a: float, b: float) -> tuple[float, float]:
    """What F, the clean latent that the model's output means for x, has of x and of that output.

    ε: F = (x − b·ε̂)/a.  v: F = a·x − b·v.  flow: F = x − σ·v.
    """
    if prediction == "epsilon":
        return 1.0 / a, -b / a
    return (a if prediction == "v" else 1.0), -b


def advance(x: Tensor, D: Tensor, was: Step, now: Step, epsilon: Tensor) -> Tensor:
    """x' = a'·D + kept·ε̂ + fresh·ε, with ε̂ = (x − a·D)/b the noise that ``x`` held at its step. All (B, C, h, w)."""
    onward = now.a * D + now.fresh * epsilon
    return onward + now.kept / was.b * (x - was.a * D) if now.kept else onward


def noise(seeds: tuple[int, int], mix: float, steps: int, shape: tuple[int, int, int]) -> Tensor:
    """The noises ε₁ … εₙ of a seed, (steps, C, h, w) float32 on the CPU; two seeds are mixed spherically.

    One tensor drawn at once from ``torch.Generator().manual_seed(seed)``: the same on every device.
    """
    first = torch.randn((steps, *shape), generator=torch.Generator().manual_seed(seeds[0]))
    if mix <= 0.0 or seeds[0] == seeds[1]:
        return first
    second = torch.randn((steps, *shape), generator=torch.Generator().manual_seed(seeds[1]))
    return slerp(first, second, mix, dims=(1, 2, 3)) if mix < 1.0 else second


def slerp(one: Tensor, two: Tensor, mix: float | Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Spherical interpolation over ``dims``; the length goes linearly from one to the other (Shoemake 1985)."""
    norm_one, norm_two = (torch.linalg.vector_norm(side, dim=dims, keepdim=True) for side in (one, two))
    u, v = one / norm_one.clamp(min=1e-12), two / norm_two.clamp(min=1e-12)
    angle = torch.arccos((u * v).sum(dim=dims, keepdim=True).clamp(-0.9999, 0.9999))
    arc = (torch.sin((1 - mix) * angle) * u + torch.sin(mix * angle) * v) / torch.sin(angle)
    return arc * (norm_one * (1 - mix) + norm_two * mix)
