"""Flow transformers and SANA-Sprint against the pipelines of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from engine.diffusion.schedule import noise, spaced_timesteps
from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.flows import FLOWS, save_flux, save_sd3
from tests.engine.models.pipelines import (
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    as_image,
    is_close,
    picture,
    run_pipeline,
    stream_latent,
)

SIZES = {"sana": 128}
PIPELINES = {
    "sd3": "StableDiffusion3", "sd3-tiny": "StableDiffusion3",
    "flux": "Flux", "flux2": "Flux2Klein", "lumina": "Lumina", "lumina2": "Lumina2", "sana": "SanaSprint",
}  # fmt: skip
#: Pipeline arguments without guidance, if not a scale of 1; a distilled model gets its default scale.
UNGUIDED = {"sana": {"guidance_scale": 4.5, "use_resolution_binning": False}}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_from_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, size = FLOWS[name](tmp_path), SIZES.get(name, 64)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name] + "Pipeline").from_pretrained(folder)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": size, "width": size}
    if name == "sana":
        arguments["intermediate_timesteps"] = None
    expected, timesteps = run_pipeline(monkeypatch, pipeline, model, size, **arguments | UNGUIDED.get(name, {}))
    assert len(timesteps) == STEPS
    assert is_close(flow_latent(name, model, size, timesteps, "text"), pipeline_latent(name, model, expected, size))


@pytest.mark.parametrize("name", FLOWS)
def test_flows_from_a_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, size = FLOWS[name](tmp_path), SIZES.get(name, 64)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline_class = getattr(diffusers, PIPELINES[name] + "Img2ImgPipeline", None)
    arguments: dict[str, Any] = {"guidance_scale": 1.0, "height": size, "width": size} | UNGUIDED.get(name, {})
    if pipeline_class is not None:
        arguments |= {"image": as_image(size), "strength": 0.6, "num_inference_steps": STEPS}
        if name == "sana":
            arguments["intermediate_timesteps"] = None
    else:  # a text-to-image pipeline that starts at a noised picture
        pipeline_class = getattr(diffusers, PIPELINES[name] + "Pipeline")
        pixels = torch.from_numpy(picture(size)[None, ..., :3]).permute(0, 3, 1, 2).float() / 255
        epsilon = noise((SEED, SEED), 0.0, STEPS, model.latent_shape(size, size))[:1]
        with torch.inference_mode():
            arguments |= {
                "latents": 0.4 * model.encode(pixels) + 0.6 * epsilon,
                "sigmas": [0.6, 0.25],
                "num_inference_steps": 2,
            }
    pipeline = pipeline_class.from_pretrained(folder)
    if "sigmas" in arguments:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)
    expected, timesteps = run_pipeline(monkeypatch, pipeline, model, size, **arguments)
    assert len(timesteps) == 2
    assert is_close(flow_latent(name, model, size, timesteps, "image"), pipeline_latent(name, model, expected, size))


GUIDED = {
    "sd3": {"guidance_scale": 2.0, "negative_prompt": NEGATIVE},
    "flux": {"true_cfg_scale": 2.0, "negative_prompt": NEGATIVE},
    "flux2": {"guidance_scale": 2.0},  # its negative prompt is always empty
    "lumina2": {"guidance_scale": 2.0, "negative_prompt": NEGATIVE, "cfg_normalization": False},
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_flows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(FLOWS[name](tmp_path)), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name] + "Pipeline").from_pretrained(tmp_path)
    expected, timesteps = run_pipeline(
        monkeypatch, pipeline, model, 64, num_inference_steps=2, height=64, width=64, **GUIDED[name]
    )
    negative = "" if name == "flux2" else NEGATIVE
    values = {"/mode": "text", "/eta": 0.0, "/negative": negative, "/guidance": 2.0, "/guidance/mode": "full"}
    assert is_close(stream_latent(model, 64, timesteps, **values), pipeline_latent(name, model, expected, 64))


def test_flux_dev_has_embedded_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(save_flux(tmp_path, dev=True)), torch.device("cpu"), torch.float32)
    pipeline = diffusers.FluxPipeline.from_pretrained(tmp_path)
    for scale, requested in ((3.5, 0.0), (6.0, 6.0)):
        expected, timesteps = run_pipeline(
            monkeypatch, pipeline, model, 64, num_inference_steps=2, height=64, width=64, guidance_scale=scale
        )
        latent = stream_latent(model, 64, timesteps, **{"/mode": "text", "/eta": 0.0, "/guidance/embedded": requested})
        assert is_close(latent, pipeline_latent("flux", model, expected, 64))


def test_sd3_without_its_third_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(save_sd3(tmp_path, t5=False)), torch.device("cpu"), torch.float32)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    expected, timesteps = run_pipeline(
        monkeypatch, pipeline, model, 64, num_inference_steps=2, height=64, width=64, guidance_scale=1.0
    )
    assert is_close(stream_latent(model, 64, timesteps, **{"/mode": "text", "/eta": 0.0}), expected)


@pytest.mark.parametrize("name", ["flux", "flux-dev", "flux2", "lumina2"])
def test_spaced_timesteps_are_those_of_the_pipeline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_flux(tmp_path, dev=True) if name == "flux-dev" else FLOWS[name](tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name.removesuffix("-dev")] + "Pipeline").from_pretrained(folder)
    _, timesteps = run_pipeline(
        monkeypatch, pipeline, model, 64, num_inference_steps=4, height=64, width=64, guidance_scale=1.0
    )
    # Lumina-Image 2.0's pipeline uses the number of the latent's channels as the number of tokens.
    tokens = model.latent_channels if name == "lumina2" else model.token_count(64, 64)
    assert spaced_timesteps(model.noise_schedule, 4, 1.0, tokens) == pytest.approx(timesteps, rel=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux2", "lumina2", "sana"])
@pytest.mark.parametrize("mode", ["none", "full", "self", "onetime"])
def test_a_batch_of_frames_equals_one_at_a_time(name: str, mode: str, tmp_path: Path) -> None:
    model, size = load(str(FLOWS[name](tmp_path)), torch.device("cpu"), torch.float32), SIZES.get(name, 64)
    values = {
        "/prompt": PROMPT,
        "/negative": NEGATIVE,
        "/steps": 3,
        "/strength": 0.8,
        "/guidance": 1.5,
        "/guidance/mode": mode,
    }
    frames = [Frame(np.random.default_rng(i).integers(0, 256, (size, size, 4), dtype=np.uint8), i) for i in range(4)]
    batched = Stream(model, size, size)
    batched.apply(Snapshot(values))
    batched.settle()
    together = [f for frame in frames for f in batched.step([frame]) or []]
    for frame, output in zip(frames, together, strict=False):
        stream = Stream(model, size, size)
        stream.apply(Snapshot(values))
        stream.settle()
        alone = stream.step([frame]) or stream.step([]) or stream.step([])
        assert alone is not None
        assert np.abs(alone[0].pixels.astype(int) - output.pixels).max() <= 1
    assert len(together) == 2


def flow_latent(name: str, model: Model, size: int, timesteps: list[float], mode: str) -> torch.Tensor:
    """Return the stream's latent at the pipeline's timesteps.

    SANA's timesteps are angles, and its noise is renewed between steps. The other flows keep the noise.
    """
    if name == "sana":
        timesteps = [min(t / (np.pi / 2), 1.0) * 1000 for t in timesteps]
    return stream_latent(
        model, size, timesteps, **{"/mode": mode, "/eta": 1.0 if name == "sana" else 0.0, "/guidance/mode": "none"}
    )


def pipeline_latent(name: str, model: Model, latent: torch.Tensor, size: int) -> torch.Tensor:
    """Return a pipeline's latent in the stream's form: unpacked, in the denoiser's range."""
    if name == "flux":
        return diffusers.FluxPipeline._unpack_latents(latent, size, size, 8)
    return model.codec.scale_latents(latent) if name == "flux2" else latent
