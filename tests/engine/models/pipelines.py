"""The stream and the pipelines of diffusers, run on the same weights, noise and timesteps: one frame, float32."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from engine.diffusion.schedule import noise
from engine.diffusion.slots import Slot
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.runtime.cuda_streams import PendingOutput
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot

PROMPT, NEGATIVE, SEED, STEPS = "green spiral", "red stripes", 7, 3
#: Scheduler options for timesteps that end at the last one.
TRAILING = {"timestep_spacing": "trailing"}


class RecordingStream(Stream):
    """A stream that records the clean latents it decodes."""

    latents: torch.Tensor

    def _decode(self, finished: list[tuple[Slot, torch.Tensor]]) -> PendingOutput:
        if finished:
            self.latents = finished[0][1]
        return super()._decode(finished)


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (size, size, 4), dtype=np.uint8)


def as_image(size: int) -> Image.Image:
    return Image.fromarray(picture(size)[..., :3])


def stream_latent(model: Model, size: int, timesteps: list[float], **values: Any) -> torch.Tensor:
    """Return the latent that the stream decodes for one frame, (1, C, h, w)."""
    stream = RecordingStream(model, size, size)
    schedule = " ".join(repr(float(t)) for t in timesteps)
    named = {"/prompt": PROMPT, "/negative": NEGATIVE, "/seed": SEED, "/schedule": schedule, "/steps": len(timesteps)}
    stream.apply(Snapshot(named | values))
    stream.settle()
    stream.step([Frame(picture(size))])
    while stream.slots:
        stream.step([])
    return stream.latents


def run_pipeline(
    monkeypatch: pytest.MonkeyPatch, pipeline: Any, model: Model, size: int, **arguments: Any
) -> tuple[torch.Tensor, list[float]]:
    """Run a pipeline with the stream's noises and the autoencoder's mean; return its latent and its timesteps."""
    noises = noise((SEED, SEED), 0.0, 8, model.latent_shape(size, size))[:, None]
    if isinstance(pipeline.scheduler, EulerDiscreteScheduler) and "image" not in arguments:
        noises[0] /= model.noise_schedule.ab(999)[1]  # Euler's pure noise is b·ε; elsewhere it is ε
    draws = itertools.cycle(noises)
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.") and "randn_tensor" in vars(module):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(draws).reshape(shape))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    timesteps: list[float] = []

    def record(_pipeline: Any, _step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        timesteps.append(float(t))
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    latent = pipeline(prompt=PROMPT, output_type="latent", callback_on_step_end=record, **arguments)[0]
    return latent, timesteps


def is_close(one: torch.Tensor, two: torch.Tensor) -> bool:
    assert one.shape == two.shape
    assert float(two.std()) > 0.05, "nothing to compare"
    return float((one - two).abs().max()) < 1e-3
