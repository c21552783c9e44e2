"""Region-adaptive sampling by refusal: every token passes every layer, and the skipped ones' results are refused.

Independent of the engine's regional transformers: diffusers' own forward runs, with hooks on the projections to keys
and values. Where a token is skipped, a hook puts back what the projection gave when the token was last computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.diffusion.schedule import Step
from engine.models import Condition, Model

#: (name of the denoiser's class) → (module's name → number of text tokens before the picture's; None: not refused).
Projections = Callable[[str, int], int | None]


def sd3_projections(name: str, text: int) -> int | None:
    return 0 if name.endswith((".to_k", ".to_v")) else None


def lumina_projections(name: str, text: int) -> int | None:
    return 0 if name.endswith(("attn1.to_k", "attn1.to_v")) else None


def flux_projections(name: str, text: int) -> int | None:
    if not name.endswith((".to_k", ".to_v")):
        return None
    return text if name.startswith("single_") else 0


class Refusal:
    """Hooks on a denoiser that refuse the keys and values of the tokens in ``skipped``, (rows, N) bool."""

    def __init__(self, denoiser: nn.Module, projections: Projections, text: int) -> None:
        self.skipped: Tensor | None = None
        self._stored: dict[str, Tensor] = {}
        for name, module in denoiser.named_modules():
            first = projections(name, text)
            if first is not None:
                module.register_forward_hook(self._hook(name, first))

    def _hook(self, name: str, first: int) -> Callable[..., Tensor]:
        def refuse(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if self.skipped is None:
                self._stored[name] = output[:, first:].clone()
                return output
            mixed = torch.where(self.skipped[:, :, None], self._stored[name], output[:, first:])
            self._stored[name] = mixed.clone()
            return torch.cat([output[:, :first], mixed], 1)

        return refuse


@dataclass
class Sampling:
    """A sampling: dense ``start`` steps and ``resets``, the share, the paper's h and k, the guidance scale."""

    start: int
    resets: Sequence[int]
    share: float
    high: float
    starvation: float
    guidance: float = 1.0


def choose_skipped(m: np.ndarray, d: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return which tokens of one frame are skipped, (N,) bool, by sorting."""
    count = len(m)
    skipped = int((1 - sampling.share) * count)
    highest = int(skipped * sampling.high)
    by_high = sorted(range(count), key=lambda i: m[i] * np.exp(-sampling.starvation * d[i]), reverse=True)
    rest = [i for i in range(count) if i not in set(by_high[:highest])]
    by_low = sorted(rest, key=lambda i: m[i] * np.exp(sampling.starvation * d[i]))
    mask = np.zeros(count, bool)
    mask[by_high[:highest] + by_low[: skipped - highest]] = True
    return mask


def patch_means(pixels: Tensor, patch: int) -> Tensor:
    """Average (rows, h, w) over each patch, (rows, N)."""
    rows, height, width = pixels.shape
    return pixels.reshape(rows, height // patch, patch, width // patch, patch).mean((2, 4)).reshape(rows, -1)


@torch.inference_mode()
def sample(
    model: Model, refusal: Refusal, x: Tensor, steps: Sequence[Step], condition: Condition, sampling: Sampling
) -> list[Tensor]:
    """Return the latents after each step but the last, from ``x`` (frames, C, h, w), by Euler steps."""
    frames, _, height, width = x.shape
    patch = model.architecture.patch
    tokens = height * width // patch**2
    rows = len(condition.tokens)
    output, d = torch.empty(0), np.zeros((frames, tokens))
    m = np.zeros((frames, tokens))
    latents = []
    for position, step in enumerate(steps[:-1]):
        is_dense = position < sampling.start or position in sampling.resets
        skipped = np.stack([choose_skipped(m[i], d[i], sampling) for i in range(frames)])
        refusal.skipped = None if is_dense else torch.from_numpy(np.tile(skipped, (rows // frames, 1)))
        t = torch.full((rows,), step.t)
        computed = model.denoise(x.repeat(rows // frames, 1, 1, 1), t, condition, 0.0)
        if refusal.skipped is None:
            output, d = computed, np.zeros_like(d)
        else:
            grid = refusal.skipped.reshape(rows, 1, height // patch, width // patch)
            pixels = grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
            output, d = torch.where(pixels, output, computed), np.where(skipped, d + 1, 0)
        positive, negative = output[:frames], output[rows - frames :]
        v = negative + sampling.guidance * (positive - negative)
        m = patch_means(v.std(1), patch).numpy()
        x = x + (steps[position + 1].t - step.t) / 1000 * v
        latents.append(x)
    return latents
