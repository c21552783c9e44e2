"""Architectures with random weights: their sizes are right, the loader knows them, and diffusers can run them."""

from __future__ import annotations

import pytest
import torch

from engine.bench.random_weights import ARCHITECTURES, build_components, build_pipeline
from engine.models import ModelError
from engine.models.architectures import find_architecture
from engine.models.noise_schedule import read_noise_schedule
from engine.shared.options import EngineOptions

META = torch.device("meta")
KNOWN = {  # millions of the denoiser's weights, diffusers' pipeline, the last timestep's share of noise, squared
    "sd15": (860, "StableDiffusionImg2ImgPipeline", 0.9953),
    "sd-turbo": (866, "StableDiffusionImg2ImgPipeline", 0.9953),
    "sdxl-turbo": (2567, "StableDiffusionXLImg2ImgPipeline", 0.9953),
    "sd3": (2028, "StableDiffusion3Img2ImgPipeline", 1.0),
}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_architecture_matches_its_name(name: str) -> None:
    components = build_components(name, torch.float32, META, EngineOptions())
    denoiser = components.get("unet") or components["transformer"]
    millions, kind, share = KNOWN[name]
    assert round(sum(weight.numel() for weight in denoiser.parameters()) / 1e6) == pytest.approx(millions, rel=0.03)
    architecture = find_architecture(components)
    assert architecture is not None
    assert all(name in components for name in architecture.required_components)
    schedule = read_noise_schedule(components["scheduler"], architecture.dynamic_shift)
    assert schedule.ab(float(schedule.last_timestep))[1] ** 2 == pytest.approx(share, abs=1e-4)
    assert type(build_pipeline(components, META)).__name__ == kind


def test_a_scheduler_without_its_numbers_is_named() -> None:
    with pytest.raises(ModelError, match="LCMScheduler without num_train_timesteps and beta_start"):
        read_noise_schedule({"_class_name": "LCMScheduler", "prediction_type": "epsilon"})
    with pytest.raises(ModelError, match="prediction type 'sample'"):
        read_noise_schedule({"_class_name": "LCMScheduler", "prediction_type": "sample"})
