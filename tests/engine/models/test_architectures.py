"""Every family against the pipeline of diffusers: same weights, same noise, same timesteps, one frame, float32."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from engine.diffusion.schedule import noise, spaced_timesteps
from engine.diffusion.slots import Slot
from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.runtime.cuda_streams import PendingOutput
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import FLOWS, save_flux, save_sd3

PROMPT, NEGATIVE, SEED, STEPS = "green spiral", "red stripes", 7, 3


class Recording(Stream):
    """A stream that keeps the clean latents it decodes."""

    latents: torch.Tensor

    def _decode(self, finished: list[tuple[Slot, torch.Tensor]]) -> PendingOutput:
        if finished:
            self.latents = finished[0][1]
        return super()._decode(finished)


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (size, size, 4), dtype=np.uint8)


def ours(model: Model, size: int, timesteps: list[float], **values: Any) -> torch.Tensor:
    """The latent that the stream decodes for one frame, (1, C, h, w)."""
    stream = Recording(model, size, size)
    schedule = " ".join(repr(float(t)) for t in timesteps)
    named = {"/prompt": PROMPT, "/negative": NEGATIVE, "/seed": SEED, "/schedule": schedule, "/steps": len(timesteps)}
    stream.apply(Snapshot(named | values), wait=True)
    stream.step([Frame(picture(size))])
    while stream.slots:
        stream.step([])
    return stream.latents


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[torch.Tensor, list[float]]]:
    """Runs a pipeline with the stream's noises and the mean of the autoencoder: its latent and the timesteps it took."""

    def run(pipeline: Any, model: Model, size: int, **arguments: Any) -> tuple[torch.Tensor, list[float]]:
        noises = noise((SEED, SEED), 0.0, 8, model.latent_shape(size, size))[:, None]
        if isinstance(pipeline.scheduler, EulerDiscreteScheduler) and "image" not in arguments:
            noises[0] /= model.noise_schedule.ab(999)[
                1
            ]  # its pure noise is b·ε, where that of the others and ours is ε
        drawn = itertools.cycle(noises)
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and "randn_tensor" in vars(module):
                monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(drawn).reshape(shape))
        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        taken: list[float] = []

        def note(_pipeline: Any, _step: int, t: Any, found: dict[str, Any]) -> dict[str, Any]:
            taken.append(float(t))
            return found

        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(prompt=PROMPT, output_type="latent", callback_on_step_end=note, **arguments)[0]
        return image, taken

    return run


def as_image(size: int) -> Image.Image:
    return Image.fromarray(picture(size)[..., :3])


def close(one: torch.Tensor, two: torch.Tensor) -> bool:
    assert one.shape == two.shape
    assert float(two.std()) > 0.05, "nothing to compare"
    return float((one - two).abs().max()) < 1e-3


def save_v(folder: Path) -> Path:
    return save_sd(folder, "EulerDiscreteScheduler", "v_prediction")


def save_tiny(folder: Path) -> Path:
    return save_sd(folder, tiny=True)


def save_turbo(folder: Path) -> Path:
    return save_sd(folder, "EulerDiscreteScheduler")


def save_plain_lcm(folder: Path) -> Path:
    return save_sd(folder, "LCMScheduler", embedded=False)


TRAILING = {"timestep_spacing": "trailing"}
UNETS: dict[str, tuple[str, Callable[[Path], Path], Any, dict[str, Any]]] = {
    "sd": ("StableDiffusion", save_sd, DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "sd-taesd": ("StableDiffusion", save_tiny, DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "sd-v": ("StableDiffusion", save_v, EulerDiscreteScheduler, TRAILING),
    "sd-turbo": ("StableDiffusion", save_turbo, EulerDiscreteScheduler, TRAILING),
    "sd-lcm-lora": ("StableDiffusion", save_plain_lcm, LCMScheduler, {}),
    "sd-tcd-lora": ("StableDiffusion", save_sd, TCDScheduler, {"clip_sample": False}),
    "sdxl": ("StableDiffusionXL", save_sdxl, EulerDiscreteScheduler, TRAILING),
}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("name", UNETS)
def test_unets(name: str, mode: str, guided: bool, tmp_path: Path, theirs: Any) -> None:
    kind, save, scheduler, options = UNETS[name]
    folder = save(tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, kind + ("Pipeline" if mode == "text" else "Img2ImgPipeline")).from_pretrained(folder)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **options)
    arguments: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 2.0 if guided else 1.0}
    arguments |= {"negative_prompt": NEGATIVE} if guided else {}
    arguments |= {"height": 64, "width": 64} if mode == "text" else {"image": as_image(64), "strength": 0.7}
    eta = {LCMScheduler: 1.0, TCDScheduler: 0.3}.get(scheduler, 0.0)  # 0.3 is TCD's default
    if scheduler is TCDScheduler:
        pipeline.scheduler.alphas_cumprod[0] = (
            1.0  # it would end at t = 0 with that much noise, where the stream ends clean
        )
    expected, timesteps = theirs(pipeline, model, 64, eta=eta if scheduler is TCDScheduler else 0.0, **arguments)
    guidance = {"/guidance": 2.0, "/guidance/mode": "full"} if guided else {"/guidance/mode": "none"}
    assert len(timesteps) == (STEPS if mode == "text" else 2)
    assert close(ours(model, 64, timesteps, **{"/mode": mode, "/eta": eta}, **guidance), expected)


def test_sdxl_takes_an_empty_negative_prompt_as_zeros(tmp_path: Path, theirs: Any) -> None:
    folder = save_sdxl(tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    expected, timesteps = theirs(pipeline, model, 64, num_inference_steps=2, guidance_scale=3.0, height=64, width=64)
    values = {"/mode": "text", "/eta": 0.0, "/negative": "", "/guidance": 3.0, "/guidance/mode": "full"}
    assert close(ours(model, 64, timesteps, **values), expected)


@pytest.mark.parametrize("mode", ["text", "image"])
def test_lcm_with_its_guidance_built_in(mode: str, tmp_path: Path, theirs: Any) -> None:
    folder = save_sd(tmp_path, "LCMScheduler")
    model = load(str(folder), torch.device("cpu"), torch.float32)
    kind = "LatentConsistencyModel" + ("Pipeline" if mode == "text" else "Img2ImgPipeline")
    pipeline = getattr(diffusers, kind).from_pretrained(folder, safety_checker=None, feature_extractor=None)
    for scale, asked in ((8.0, 0.0), (3.0, 3.0)):
        arguments: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": scale}
        arguments |= {"height": 64, "width": 64} if mode == "text" else {"image": as_image(64), "strength": 0.7}
        expected, timesteps = theirs(pipeline, model, 64, **arguments)
        assert close(ours(model, 64, timesteps, **{"/mode": mode, "/guidance/embedded": asked}), expected)


SIZES = {"sana": 128}
PIPELINES = {
    "sd3": "StableDiffusion3", "sd3-tiny": "StableDiffusion3",
    "flux": "Flux", "flux2": "Flux2Klein", "lumina": "Lumina", "lumina2": "Lumina2", "sana": "SanaSprint",
}  # fmt: skip
#: What turns guidance off in each pipeline; where it is built in, the checkpoint's own scale.
PLAIN = {"sana": {"guidance_scale": 4.5, "use_resolution_binning": False}}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_from_text(name: str, tmp_path: Path, theirs: Any) -> None:
    folder, size = FLOWS[name](tmp_path), SIZES.get(name, 64)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name] + "Pipeline").from_pretrained(folder)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": size, "width": size}
    if name == "sana":
        arguments["intermediate_timesteps"] = None
    expected, timesteps = theirs(pipeline, model, size, **arguments | PLAIN.get(name, {}))
    assert len(timesteps) == STEPS
    assert close(taken_by(name, model, size, timesteps, "text"), plain_latent(name, model, expected, size))


@pytest.mark.parametrize("name", FLOWS)
def test_flows_from_a_picture(name: str, tmp_path: Path, theirs: Any) -> None:
    folder, size = FLOWS[name](tmp_path), SIZES.get(name, 64)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    kind = getattr(diffusers, PIPELINES[name] + "Img2ImgPipeline", None)
    arguments: dict[str, Any] = {"guidance_scale": 1.0, "height": size, "width": size} | PLAIN.get(name, {})
    if kind is not None:
        arguments |= {"image": as_image(size), "strength": 0.6, "num_inference_steps": STEPS}
        if name == "sana":
            arguments["intermediate_timesteps"] = None
    else:  # from-text pipelines begun at a noised picture
        kind = getattr(diffusers, PIPELINES[name] + "Pipeline")
        pixels = torch.from_numpy(picture(size)[None, ..., :3]).permute(0, 3, 1, 2).float() / 255
        epsilon = noise((SEED, SEED), 0.0, STEPS, model.latent_shape(size, size))[:1]
        with torch.inference_mode():
            arguments |= {
                "latents": 0.4 * model.encode(pixels) + 0.6 * epsilon,
                "sigmas": [0.6, 0.25],
                "num_inference_steps": 2,
            }
    pipeline = kind.from_pretrained(folder)
    if "sigmas" in arguments:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)
    expected, timesteps = theirs(pipeline, model, size, **arguments)
    assert len(timesteps) == 2
    assert close(taken_by(name, model, size, timesteps, "image"), plain_latent(name, model, expected, size))


GUIDED = {
    "sd3": {"guidance_scale": 2.0, "negative_prompt": NEGATIVE},
    "flux": {"true_cfg_scale": 2.0, "negative_prompt": NEGATIVE},
    "flux2": {"guidance_scale": 2.0},  # its negative prompt is always empty
    "lumina2": {"guidance_scale": 2.0, "negative_prompt": NEGATIVE, "cfg_normalization": False},
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_flows(name: str, tmp_path: Path, theirs: Any) -> None:
    model = load(str(FLOWS[name](tmp_path)), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name] + "Pipeline").from_pretrained(tmp_path)
    expected, timesteps = theirs(pipeline, model, 64, num_inference_steps=2, height=64, width=64, **GUIDED[name])
    negative = "" if name == "flux2" else NEGATIVE
    values = {"/mode": "text", "/eta": 0.0, "/negative": negative, "/guidance": 2.0, "/guidance/mode": "full"}
    assert close(ours(model, 64, timesteps, **values), plain_latent(name, model, expected, 64))


def test_flux_dev_has_its_guidance_built_in(tmp_path: Path, theirs: Any) -> None:
    model = load(str(save_flux(tmp_path, dev=True)), torch.device("cpu"), torch.float32)
    pipeline = diffusers.FluxPipeline.from_pretrained(tmp_path)
    for scale, asked in ((3.5, 0.0), (6.0, 6.0)):
        expected, timesteps = theirs(
            pipeline, model, 64, num_inference_steps=2, height=64, width=64, guidance_scale=scale
        )
        found = ours(model, 64, timesteps, **{"/mode": "text", "/eta": 0.0, "/guidance/embedded": asked})
        assert close(found, plain_latent("flux", model, expected, 64))


def test_sd3_without_its_third_encoder(tmp_path: Path, theirs: Any) -> None:
    model = load(str(save_sd3(tmp_path, t5=False)), torch.device("cpu"), torch.float32)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    expected, timesteps = theirs(pipeline, model, 64, num_inference_steps=2, height=64, width=64, guidance_scale=1.0)
    assert close(ours(model, 64, timesteps, **{"/mode": "text", "/eta": 0.0}), expected)


@pytest.mark.parametrize("name", ["flux", "flux-dev", "flux2", "lumina2"])
def test_made_timesteps_are_those_of_the_pipeline(name: str, tmp_path: Path, theirs: Any) -> None:
    folder = save_flux(tmp_path, dev=True) if name == "flux-dev" else FLOWS[name](tmp_path)
    model = load(str(folder), torch.device("cpu"), torch.float32)
    pipeline = getattr(diffusers, PIPELINES[name.removesuffix("-dev")] + "Pipeline").from_pretrained(folder)
    _, timesteps = theirs(pipeline, model, 64, num_inference_steps=4, height=64, width=64, guidance_scale=1.0)
    # Lumina-Image 2.0's pipeline takes the latent's channels for its number of tokens.
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
    batched.apply(Snapshot(values), wait=True)
    together = [f for frame in frames for f in batched.step([frame]) or []]
    for frame, found in zip(frames, together, strict=False):
        stream = Stream(model, size, size)
        stream.apply(Snapshot(values), wait=True)
        alone = stream.step([frame]) or stream.step([]) or stream.step([])
        assert alone is not None
        assert np.abs(alone[0].pixels.astype(int) - found.pixels).max() <= 1
    assert len(together) == 2


def taken_by(name: str, model: Model, size: int, timesteps: list[float], mode: str) -> torch.Tensor:
    """Our latent, at the pipeline's timesteps; SANA's are angles and renew the noise between steps, the other flows keep it."""
    if name == "sana":
        timesteps = [min(t / (np.pi / 2), 1.0) * 1000 for t in timesteps]
    return ours(
        model, size, timesteps, **{"/mode": mode, "/eta": 1.0 if name == "sana" else 0.0, "/guidance/mode": "none"}
    )


def plain_latent(name: str, model: Model, latent: torch.Tensor, size: int) -> torch.Tensor:
    """A pipeline's latent in the stream's form: unpacked, and as the denoiser left it."""
    if name == "flux":
        return diffusers.FluxPipeline._unpack_latents(latent, size, size, 8)
    return model.codec.scale_latents(latent) if name == "flux2" else latent
