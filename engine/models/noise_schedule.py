"""Noise schedules: a scheduler's config → the coefficients that the stream uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.models.model_error import ModelError

#: Most timesteps of a training schedule; known ones have 1000.
MAX_TIMESTEPS = 100_000


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule of a model. ``prediction`` is what the denoiser returns: epsilon, v or flow.

    ``alphas`` is ᾱ for each training timestep, (T,) float64; a flow model and TrigFlow (``trigonometric``) have none.
    ``consistency`` turns the LCM boundary on, with ``timestep_scaling`` s and ``sigma_data`` σ. A flow's timesteps are
    shifted by ``shift``, or by ``dynamic_shift`` of the number of a picture's tokens and of steps.
    """

    prediction: str
    alphas: Tensor | None = None
    consistency: bool = False
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    shift: float = 1.0
    dynamic_shift: Callable[[int, int], float] | None = None
    trigonometric: bool = False

    @property
    def last_timestep(self) -> int:
        """The timestep with the most noise."""
        return 1000 if self.alphas is None else len(self.alphas) - 1

    def ab(self, t: float) -> tuple[float, float]:
        """Return a and b of x = a·z + b·ε at timestep ``t``."""
        if self.alphas is None:
            sigma = min(max(t / 1000.0, 0.0), 1.0)
            if self.trigonometric:
                return math.cos(sigma * math.pi / 2), math.sin(sigma * math.pi / 2)
            return 1.0 - sigma, sigma
        alpha = float(self.alphas[min(max(round(t), 0), len(self.alphas) - 1)])
        return math.sqrt(alpha), math.sqrt(1.0 - alpha)

    def boundary(self, t: float) -> tuple[float, float]:
        """Return c_skip and c_out at timestep ``t``; 0 and 1 without the boundary."""
        if not self.consistency:
            return 0.0, 1.0
        scaled, sigma = t * self.timestep_scaling, self.sigma_data
        return sigma**2 / (scaled**2 + sigma**2), scaled / math.sqrt(scaled**2 + sigma**2)


def read_noise_schedule(
    config: Mapping[str, Any], dynamic_shift: Callable[[int, int], float] | None = None
) -> NoiseSchedule:
    """Read a scheduler's config; ``dynamic_shift`` replaces the shift by the number of tokens that the config defines.

    Raises ModelError if the schedule is not supported.
    """
    scheduler = str(config.get("_class_name") or "scheduler without a class name")
    if scheduler.startswith("FlowMatch"):
        return _read_flow(config, dynamic_shift)
    if scheduler == "SCMScheduler":
        return NoiseSchedule("v", trigonometric=True)
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(str(config.get("prediction_type", "epsilon")))
    if prediction is None:
        raise ModelError(f"{scheduler} with prediction type {config.get('prediction_type')!r} is not supported")
    if missing := [name for name in ("num_train_timesteps", "beta_start") if name not in config]:
        raise ModelError(f"{scheduler} without {' and '.join(missing)} is not supported")
    alphas = torch.cumprod(1.0 - _betas(config), 0)
    if config.get("rescale_betas_zero_snr"):
        alphas = _rescale_to_zero_terminal_snr(alphas)
    if alphas.ndim != 1 or not bool(((alphas > 0) & (alphas <= 1)).all()):
        raise ModelError(f"{scheduler} with noise levels outside 0 to 1 is not supported")
    return NoiseSchedule(
        prediction, alphas, scheduler == "LCMScheduler", timestep_scaling=float(config.get("timestep_scaling", 10.0))
    )


def _read_flow(config: Mapping[str, Any], dynamic_shift: Callable[[int, int], float] | None) -> NoiseSchedule:
    """Read a flow's schedule: its shift is fixed, or a function of the number of tokens."""
    if not config.get("use_dynamic_shifting"):
        return NoiseSchedule("flow", shift=float(config.get("shift", 1.0)))
    if dynamic_shift is not None:
        return NoiseSchedule("flow", dynamic_shift=dynamic_shift)
    low, high = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
    start, end = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    linear = config.get("time_shift_type") == "linear"

    def interpolate(tokens: int, _steps: int) -> float:
        mu = start + (end - start) * (tokens - low) / (high - low)
        return mu if linear else math.exp(mu)

    return NoiseSchedule("flow", dynamic_shift=interpolate)


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Return β of each training timestep, (T,) float64."""
    betas = config.get("trained_betas")
    count = len(betas) if betas else int(config["num_train_timesteps"])
    if not 1 <= count <= MAX_TIMESTEPS:
        raise ModelError(f"a schedule of {str(count)[:20]} timesteps is not supported (1 to {MAX_TIMESTEPS})")
    if betas:
        return torch.tensor(betas, dtype=torch.float64)
    total, start, end = count, float(config["beta_start"]), float(config["beta_end"])
    schedule = config.get("beta_schedule", "linear")
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
    if schedule == "linear":
        return torch.linspace(start, end, total, dtype=torch.float64)
    if schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal, "Improved DDPM" (arXiv 2102.09672), equation 17
        left = torch.cos((torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)
    raise ModelError(f"beta schedule {schedule!r} is not supported")


def _rescale_to_zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Shift and scale √ᾱ so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1)."""
    root = alphas.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).clamp(min=2**-24)  # an ε-model divides by its root
