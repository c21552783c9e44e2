"""Region-adaptive sampling in the stream, against a reference that computes everything and refuses what is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.bench import small_weights
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.models.loading import build_model
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from tests.engine.diffusion import regional_reference as reference

CPU = torch.device("cpu")
STEPS = 10
VALUES: dict[str, Value] = {
    "/regions": "focus", "/regions/start": 4, "/regions/reset": "6 30", "/regions/share": 0.5, "/regions/high": 0.3,
    "/regions/starvation": 0.1, "/steps": STEPS, "/strength": 0.9, "/eta": 0.0, "/prompt": "orange fire",
}  # fmt: skip
SAMPLING = {"start": 4, "resets": (6,), "share": 0.5, "high": 0.3, "starvation": 0.1}


def build_sd3() -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    components = small_weights.sd3()
    config = dict(components["transformer"].config) | {"pos_embed_max_size": 64}
    return components | {"transformer": SD3Transformer2DModel.from_config(config)}


MODELS: dict[str, tuple[Callable[[], dict[str, Any]], reference.Projections]] = {
    "sd3": (build_sd3, reference.sd3_projections),
    "flux": (small_weights.flux, reference.flux_projections),
    "lumina": (small_weights.lumina, reference.lumina_projections),
}


def load(name: str) -> tuple[Model, reference.Projections]:
    torch.manual_seed(3)
    build, projections = MODELS[name]
    components = build()
    del components["index"]
    model = build_model(name, components, CPU, torch.float32)
    model.denoiser.eval()
    return model, projections


def random_frames(count: int, width: int, height: int) -> list[Frame]:
    rng = np.random.default_rng(5)
    return [Frame(rng.integers(0, 255, (height, width, 4), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 96), (3, 32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_each_step_equals_the_reference(name: str, frames: int, height: int, width: int, guidance: float) -> None:
    model, projections = load(name)
    stream = Stream(model, width * model.factor, height * model.factor, blocking=True)
    values = VALUES | {"/guidance": guidance, "/guidance/mode": "full", "/buffer": frames}
    stream.apply(Snapshot(values))
    latents = []
    for tick in range(STEPS - 1):
        stream.step(random_frames(frames, stream.width, stream.height) if not tick else [])
        latents.append(stream.slots[0].x.clone())
    slot = stream.slots[0]
    assert stream.regions.counts.skipped == 4 * frames * (1 + (guidance > 1)) * stream.regions.tokens // 2

    negatives = frames if guidance > 1 else 0
    condition = stream.steering.conditioner.rows(frames, negatives)
    refusal = reference.Refusal(model.denoiser, projections, condition.tokens.shape[1])
    sampling = reference.Sampling(**SAMPLING, guidance=guidance)
    x = slot.plan.steps[0].a * slot.z + slot.plan.initial_noise
    expected = reference.sample(model, refusal, x, slot.plan.steps, condition, sampling)
    differences = [float((one - two).abs().max()) for one, two in zip(latents, expected, strict=True)]
    assert max(differences) < 1e-4
    refusal.skipped = None
    dense = Stream(model, stream.width, stream.height, blocking=True)
    dense.apply(Snapshot(values | {"/regions": "off"}))
    for tick in range(STEPS - 1):
        dense.step(random_frames(frames, stream.width, stream.height) if not tick else [])
    assert float((dense.slots[0].x - latents[-1]).abs().max()) > 1e-4, "the reference could not tell regions from none"
