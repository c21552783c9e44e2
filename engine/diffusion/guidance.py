"""Classifier-free guidance: none, full, and the residual forms of StreamDiffusion (arXiv 2312.12491, section 3.2).

The paper writes the residual forms on noise predictions. Written on clean predictions they need no
division by √(1−ᾱ): with ε = (x − a·F)/b on both sides, ε̂ = δ·ε̄ + γ·(ε_c − δ·ε̄) becomes

    F̂ = γ·F_c + δ·(1−γ)·z̄ + (1−γ)·(1−δ)·x/a

where ε̄ = (x − a·z̄)/b is the residual noise of the frame's reference z̄: its own clean latent
(self-negative) or x̄₀, what the negative prompt made of it in slot 1 (onetime-negative).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engine.shared.settings import GuidanceSettings

MODES = ("none", "full", "self", "onetime")
#: Smallest a of the residual forms: where almost no signal is left (0.068 in Stable Diffusion), x/a is all noise.
MIN_SIGNAL = 0.05


def full(conditional: Tensor, negative: Tensor, gamma: float) -> Tensor:
    """Return plain guidance, F̂ = F_n + γ·(F_c − F_n), the same in clean as in noise space. (rows, C, h, w)."""
    return negative + gamma * (conditional - negative)


def residual(conditional: Tensor, reference: Tensor, x: Tensor, a: Tensor, gamma: float, delta: float) -> Tensor:
    """Return residual guidance against ``reference`` z̄. (rows, C, h, w); ``a`` (rows, 1, 1, 1).

    γ = 1 gives ``conditional`` for every δ: the residual noise cancels there.
    """
    guided = gamma * conditional + delta * (1.0 - gamma) * reference
    if delta == 1.0:
        return guided
    return guided + (1.0 - gamma) * (1.0 - delta) * x / a.clamp(min=MIN_SIGNAL)


def extra_rows(mode: str, gamma: float) -> str:
    """Return which frames need a negative prediction: "" none, "first" the entering ones, "all" all in flight."""
    if gamma == 1.0:
        return ""
    return {"none": "", "self": "", "onetime": "first", "full": "all"}[mode]


def negative_rows(settings: GuidanceSettings, sizes: Sequence[int], enters: bool) -> int:
    """Return how many rows are denoised again under the negative prompt.

    They are the last ones: all, or the frames of the last slot where it ``enters``. ``sizes`` are the slots' frames.
    """
    extra = extra_rows(settings.mode, settings.scale)
    if extra == "first":
        return sizes[-1] if enters else 0
    return sum(sizes) if extra == "all" else 0
