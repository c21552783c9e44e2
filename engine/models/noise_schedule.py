"""A scheduler's config → the noise schedule that the stream follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.models.checkpoint import ModelError


@dataclass(frozen=True)
class NoiseSchedule:
    """What a model's scheduler config says. ``prediction``: epsilon, v or flow.

    ``alphas`` is ᾱ for each training timestep, (T,) float64; a flow model and TrigFlow (``trigonometric``) have none.
    ``consistency`` turns the LCM boundary on, with ``timestep_scaling`` s and ``sigma_data`` σ. ``shift`` bends a flow's
    schedule, or ``bend`` does, a function of the number of a picture's tokens and of steps.
    """

    prediction: str
    alphas: Tensor | None = None
    consistency: bool = False
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    shift: float = 1.0
    bend: Callable[[int, int], float] | None = None
    trigonometric: bool = False

    @property
    def last(self) -> int:
        """The timestep of most noise."""
        return 1000 if self.alphas is None else len(self.alphas) - 1

    def ab(self, t: float) -> tuple[float, float]:
        """a and b at timestep ``t``."""
        if self.alphas is None:
            sigma = min(max(t / 1000.0, 0.0), 1.0)
            return (
                (math.cos(sigma * math.pi / 2), math.sin(sigma * math.pi / 2))
                if self.trigonometric
                else (1.0 - sigma, sigma)
            )
        alpha = float(self.alphas[min(max(round(t), 0), len(self.alphas) - 1)])
        return math.sqrt(alpha), math.sqrt(1.0 - alpha)

    def boundary(self, t: float) -> tuple[float, float]:
        """c_skip and c_out at timestep ``t``; 0 and 1 for a model without the boundary."""
        if not self.consistency:
            return 0.0, 1.0
        scaled, sigma = t * self.timestep_scaling, self.sigma_data
        return sigma**2 / (scaled**2 + sigma**2), scaled / math.sqrt(scaled**2 + sigma**2)


def read_noise_schedule(config: dict[str, Any], denoiser: str = "") -> NoiseSchedule:
    """The noise schedule of a scheduler's config; ``denoiser`` is the model's class. Raises ModelError for a kind that is not supported."""
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch"):
        return _flow(config, denoiser)
    if kind == "SCMScheduler":
        return NoiseSchedule("v", trigonometric=True)
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(str(config.get("prediction_type", "epsilon")))
    named = kind or "nameless scheduler"
    if prediction is None:
        raise ModelError(f"a {named} with prediction type {config.get('prediction_type')!r} is not supported")
    if missing := [name for name in ("num_train_timesteps", "beta_start") if name not in config]:
        raise ModelError(f"a {named} without {' and '.join(missing)} is not supported")
    alphas = torch.cumprod(1.0 - _betas(config), 0)
    if config.get("rescale_betas_zero_snr"):
        alphas = _zero_terminal(alphas)
    return NoiseSchedule(
        prediction, alphas, kind == "LCMScheduler", timestep_scaling=float(config.get("timestep_scaling", 10.0))
    )


def _flow(config: dict[str, Any], denoiser: str) -> NoiseSchedule:
    """A flow's schedule: its shift is fixed, or bends with the number of tokens as the checkpoint's pipeline has it."""
    if not config.get("use_dynamic_shifting"):
        return NoiseSchedule("flow", shift=float(config.get("shift", 1.0)))
    if denoiser == "Flux2Transformer2DModel":
        return NoiseSchedule("flow", bend=_empirical)
    low, high = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
    start, end = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    linear = config.get("time_shift_type") == "linear"

    def bend(tokens: int, _steps: int) -> float:
        mu = start + (end - start) * (tokens - low) / (high - low)
        return mu if linear else math.exp(mu)

    return NoiseSchedule("flow", bend=bend)


def _empirical(tokens: int, steps: int) -> float:
    """FLUX.2's shift, e^μ: two straight lines in the number of tokens, measured at 10 and at 200 steps, and between them."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return math.exp(at_200 + (at_200 - at_10) / 190.0 * (steps - 200.0))


def _betas(config: dict[str, Any]) -> Tensor:
    """β of each training timestep, (T,) float64."""
    if config.get("trained_betas"):
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    total, start, end = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    schedule = config.get("beta_schedule", "linear")
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
    if schedule == "linear":
        return torch.linspace(start, end, total, dtype=torch.float64)
    if schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal, "Improved DDPM" (arXiv 2102.09672), equation 17
        left = torch.cos((torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)
    raise ModelError(f"beta schedule {schedule!r} is not supported")


def _zero_terminal(alphas: Tensor) -> Tensor:
    """ᾱ moved and stretched so that nothing of the picture is left at the last timestep (Lin et al., arXiv 2305.08891, algorithm 1)."""
    root = alphas.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).clamp(min=2**-24)  # an ε-model divides by its root
