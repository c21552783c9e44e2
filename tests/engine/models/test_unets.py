"""Stable Diffusion, SDXL and LCM against the pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler

from engine.models import load
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.models.pipelines import NEGATIVE, STEPS, TRAILING, as_image, is_close, run_pipeline, stream_latent


def save_v_prediction(folder: Path) -> Path:
    return save_sd(folder, "EulerDiscreteScheduler", "v_prediction")


def save_tiny(folder: Path) -> Path:
    return save_sd(folder, tiny=True)


def save_turbo(folder: Path) -> Path:
    return save_sd(folder, "EulerDiscreteScheduler")


def save_plain_lcm(folder: Path) -> Path:
    return save_sd(folder, "LCMScheduler", embedded=False)


UNETS: dict[str, tuple[str, Callable[[Path], Path], Any, dict[str, Any]]] = {
    "sd": ("StableDiffusion", save_sd, DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "sd-taesd": ("StableDiffusion", save_tiny, DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "sd-v": ("StableDiffusion", save_v_prediction, EulerDiscreteScheduler, TRAILING),
    "sd-turbo": ("StableDiffusion", save_turbo, EulerDiscreteScheduler, TRAILING),
    "sd-lcm-lora": ("StableDiffusion", save_plain_lcm, LCMScheduler, {}),
    "sd-tcd-lora": ("StableDiffusion", save_sd, TCDScheduler, {"clip_sample": False}),
    "sdxl": ("StableDiffusionXL", save_sdxl, EulerDiscreteScheduler, TRAILING),
}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("name", UNETS)
def test_a_unet_equals_its_pipeline(
    name: str, mode: str, guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline_name, save, scheduler, options = UNETS[name]
    folder = save(tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(
        diffusers, pipeline_name + ("Pipeline" if mode == "text" else "Img2ImgPipeline")
    ).from_pretrained(folder)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **options)
    arguments: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 2.0 if guided else 1.0}
    arguments |= {"negative_prompt": NEGATIVE} if guided else {}
    arguments |= {"height": 64, "width": 64} if mode == "text" else {"image": as_image(64), "strength": 0.7}
    eta = {LCMScheduler: 1.0, TCDScheduler: 0.3}.get(scheduler, 0.0)  # 0.3 is TCD's default
    if scheduler is TCDScheduler:
        # The scheduler would end with the noise of t = 0, where the stream ends clean.
        pipeline.scheduler.alphas_cumprod[0] = 1.0
    expected, timesteps = run_pipeline(
        monkeypatch, pipeline, model, 64, eta=eta if scheduler is TCDScheduler else 0.0, **arguments
    )
    guidance = {"/guidance": 2.0, "/guidance/mode": "full"} if guided else {"/guidance/mode": "none"}
    assert len(timesteps) == (STEPS if mode == "text" else 2)
    assert is_close(stream_latent(model, 64, timesteps, **{"/mode": mode, "/eta": eta}, **guidance), expected)


def test_sdxl_encodes_an_empty_negative_prompt_as_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_sdxl(tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    expected, timesteps = run_pipeline(
        monkeypatch, pipeline, model, 64, num_inference_steps=2, guidance_scale=3.0, height=64, width=64
    )
    values = {"/mode": "text", "/eta": 0.0, "/negative": "", "/guidance": 3.0, "/guidance/mode": "full"}
    assert is_close(stream_latent(model, 64, timesteps, **values), expected)


@pytest.mark.parametrize("mode", ["text", "image"])
def test_lcm_with_embedded_guidance(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_sd(tmp_path, "LCMScheduler")
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline_name = "LatentConsistencyModel" + ("Pipeline" if mode == "text" else "Img2ImgPipeline")
    pipeline = getattr(diffusers, pipeline_name).from_pretrained(folder, safety_checker=None, feature_extractor=None)
    for scale, requested in ((8.0, 0.0), (3.0, 3.0)):
        arguments: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": scale}
        arguments |= {"height": 64, "width": 64} if mode == "text" else {"image": as_image(64), "strength": 0.7}
        expected, timesteps = run_pipeline(monkeypatch, pipeline, model, 64, **arguments)
        assert is_close(
            stream_latent(model, 64, timesteps, **{"/mode": mode, "/guidance/embedded": requested}), expected
        )
