"""Timesteps and their coefficients, for ε-, v- and flow-prediction.

Every noised latent is x = a·z + b·ε. For ε- and v-models a = √ᾱ(t) and b = √(1−ᾱ(t)); for flow
matching a = 1−σ and b = σ with t = 1000·σ. A consistency-distilled model answers c_out·F + c_skip·x
(Luo et al., arXiv 2310.04378), every other one F itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.parameters import BadValue


@dataclass(frozen=True)
class Noising:
    """What a model's scheduler config says. ``prediction``: epsilon, v or flow.

    ``alphas`` is ᾱ for each training timestep, (T,) float64; a flow model has none. ``consistency``
    turns the LCM boundary on, with ``timestep_scaling`` s and ``sigma_data`` σ; ``shift`` bends a flow's schedule.
    """

    prediction: str
    alphas: Tensor | None = None
    consistency: bool = False
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    shift: float = 1.0

    def ab(self, t: float) -> tuple[float, float]:
        """a and b at timestep ``t``."""
        if self.alphas is None:
            sigma = min(max(t / 1000.0, 0.0), 1.0)
            return 1.0 - sigma, sigma
        alpha = float(self.alphas[min(max(round(t), 0), len(self.alphas) - 1)])
        return math.sqrt(alpha), math.sqrt(1.0 - alpha)

    def boundary(self, t: float) -> tuple[float, float]:
        """c_skip and c_out at timestep ``t``; 0 and 1 for a model without the boundary."""
        if not self.consistency:
            return 0.0, 1.0
        scaled, sigma = t * self.timestep_scaling, self.sigma_data
        return sigma**2 / (scaled**2 + sigma**2), scaled / math.sqrt(scaled**2 + sigma**2)


@dataclass(frozen=True)
class Step:
    """One slot's timestep and its coefficients."""

    t: float
    a: float
    b: float
    c_skip: float
    c_out: float


def made_timesteps(noising: Noising, steps: int, strength: float) -> list[float]:
    """``steps`` timesteps from the one that ``strength`` (0 to 1) reaches, evenly downward, as the LCM sampler places them.

    Strength 1 starts at the last training timestep; 0.5 halfway. A flow's are bent by its shift:
    σ' = s·σ / (1 + (s−1)·σ). The first is at least ``steps`` so that every step has its own timestep.
    """
    total = 1000 if noising.alphas is None else len(noising.alphas)
    first = min(max(round(strength * total), steps), total)
    if noising.alphas is None:
        sigmas = [first / total * (steps - i) / steps for i in range(steps)]
        return [1000.0 * noising.shift * s / (1.0 + (noising.shift - 1.0) * s) for s in sigmas]
    return [float(first - 1 - first * i // steps) for i in range(steps)]


def plan(noising: Noising, steps: int, strength: float, explicit: str = "") -> tuple[Step, ...]:
    """The steps of a frame from most to least noise: the ``explicit`` timesteps where given, else made ones.

    Raises BadValue where an explicit timestep lies outside the model's training range.
    """
    timesteps = [float(part) for part in explicit.split()] or made_timesteps(noising, steps, strength)
    last = 1000 if noising.alphas is None else len(noising.alphas) - 1
    if max(timesteps) > last:
        raise BadValue(f"/schedule goes to {max(timesteps):g}, but this model's last timestep is {last}")
    return tuple(Step(t, *noising.ab(t), *noising.boundary(t)) for t in timesteps)


def clean(prediction: str, output: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F, the clean latent that the model's ``output`` means for ``x``. All (rows, C, h, w), a and b (rows, 1, 1, 1).

    ε: F = (x − b·ε̂)/a.  v: F = a·x − b·v.  flow: F = x − σ·v.
    """
    if prediction == "epsilon":
        return (x - b * output) / a
    if prediction == "v":
        return a * x - b * output
    return x - b * output


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
