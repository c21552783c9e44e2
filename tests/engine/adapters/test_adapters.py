"""ControlNets and image prompts against diffusers' pipelines, and adapters that change while a stream runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from engine.adapters.ip_adapter import REFERENCE_FRAMES
from engine.diffusion.stream import Stream
from engine.image.control_maps import CONTROL_MAPS
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import save_flux
from tests.engine.models.pipelines import NEGATIVE, TRAILING, is_close, picture, run_pipeline, stream_latent

CPU = torch.device("cpu")


def save_and_load(kind: str, folder: Path) -> tuple[Path, Model]:
    path = save_sdxl(folder) if kind == "StableDiffusionXL" else save_sd(folder, "EulerDiscreteScheduler")
    return path, load(str(path), CPU, torch.float32)


def map_image(name: str, size: int = 64) -> Image.Image:
    pictures = torch.from_numpy(picture(size)[None, ..., :3]).permute(0, 3, 1, 2).float() / 255
    return Image.fromarray((CONTROL_MAPS[name](pictures)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["StableDiffusion", "StableDiffusionXL"])
def test_two_controlnets_give_the_latents_of_diffusers(
    kind: str, guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = save_and_load(kind, tmp_path / "model")
    nets = [save_controlnet(tmp_path / f"net{i}", model.denoiser, i) for i in range(2)]
    pipeline = getattr(diffusers, kind + "ControlNetImg2ImgPipeline").from_pretrained(
        folder,
        controlnet=[ControlNetModel.from_pretrained(net) for net in nets],
        safety_checker=None,
        feature_extractor=None,
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    arguments: dict[str, Any] = (
        {"guidance_scale": 2.0, "negative_prompt": NEGATIVE} if guided else {"guidance_scale": 1.0}
    )
    expected, timesteps = run_pipeline(
        monkeypatch,
        pipeline,
        model,
        64,
        image=Image.fromarray(picture(64)[..., :3]),
        control_image=[map_image("luminance"), map_image("canny")],
        strength=0.7,
        num_inference_steps=4,
        controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_start=[0.0, 0.5],
        control_guidance_end=[1.0, 1.0],
        **arguments,
    )
    values = {
        "/control/1": str(nets[0]), "/control/1/from": "luminance", "/control/1/weight": 0.8,
        "/control/2": str(nets[1]), "/control/2/from": "canny", "/control/2/weight": 0.5, "/control/2/start": 0.5,
    }  # fmt: skip
    values |= {"/guidance": 2.0, "/guidance/mode": "full"} if guided else {}
    latent = stream_latent(model, 64, timesteps, **{"/eta": 0.0, **values})
    assert is_close(latent, expected)
    without = stream_latent(
        model, 64, timesteps, **{"/eta": 0.0, **values, "/control/1/weight": 0.0, "/control/2/on": False}
    )
    assert torch.equal(
        without, stream_latent(model, 64, timesteps, **{"/eta": 0.0, **values, "/control/1": "", "/control/2": ""})
    )
    assert (without - latent).abs().max() > 1e-2


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    ("kind", "plus"), [("StableDiffusion", False), ("StableDiffusion", True), ("StableDiffusionXL", False)]
)
def test_an_image_prompt_gives_the_latents_of_diffusers(
    kind: str,
    plus: bool,
    guided: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model = save_and_load(kind, tmp_path / "model")
    adapter, encoder = save_image_adapter(tmp_path, model.denoiser, plus=plus)
    reference = picture(32)[..., :3]
    cv2.imwrite(str(tmp_path / "reference.png"), cv2.cvtColor(reference, cv2.COLOR_RGB2BGR))
    pipeline = getattr(diffusers, kind + "Pipeline").from_pretrained(
        folder,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessor.from_pretrained(encoder),
        **({"safety_checker": None} if kind == "StableDiffusion" else {}),
    )
    pipeline.load_ip_adapter(str(tmp_path), subfolder="", weight_name=adapter.name, image_encoder_folder=None)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    arguments: dict[str, Any] = (
        {"guidance_scale": 2.0, "negative_prompt": NEGATIVE} if guided else {"guidance_scale": 1.0}
    )
    arguments |= {"ip_adapter_image": Image.fromarray(reference), "num_inference_steps": 2, "height": 64, "width": 64}
    values = {
        "/mode": "text",
        "/eta": 0.0,
        "/reference": str(tmp_path / "reference.png"),
        "/reference/model": str(adapter),
    }
    values |= {"/reference/encoder": str(encoder)} | ({"/guidance": 2.0, "/guidance/mode": "full"} if guided else {})
    for weight in (0.7, 1.0):
        pipeline.set_ip_adapter_scale(weight)
        expected, timesteps = run_pipeline(monkeypatch, pipeline, model, 64, **arguments)
        latent = stream_latent(model, 64, timesteps, **values, **{"/reference/weight": weight})
        assert is_close(latent, expected)
    none = stream_latent(model, 64, timesteps, **values | {"/reference": ""})
    assert torch.equal(none, stream_latent(model, 64, timesteps, **values, **{"/reference/weight": 0.0}))
    assert torch.equal(none, stream_latent(model, 64, timesteps, **values, **{"/reference/on": False}))
    assert (none - latent).abs().max() > 1e-2


def step_until(done: Callable[[], bool], tick: Callable[[], object], seconds: float = 20) -> None:
    """Call ``tick`` until ``done``. Fails after ``seconds``."""
    limit = time.perf_counter() + seconds
    while not done():
        assert time.perf_counter() < limit
        tick()


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", CPU, torch.float32)


def test_adapters_are_installed_and_removed_while_frames_pass(pocket: Model, tmp_path: Path) -> None:
    lora = save_lora(
        tmp_path / "a.safetensors",
        {"unet": pocket.denoiser, "text_encoder": pocket.architecture.components["text_encoder"]},
    )
    net = save_controlnet(tmp_path / "net", pocket.denoiser)
    adapter, encoder = save_image_adapter(tmp_path, pocket.denoiser)
    cv2.imwrite(str(tmp_path / "look.png"), picture(32)[..., :3])
    stream = Stream(pocket, 64, 64)
    frame = Frame(picture(64))
    base: dict[str, Any] = {"/steps": 1, "/lora/1/weight": 0.5}
    number = 0

    def render(**values: Any) -> np.ndarray:
        nonlocal number
        number += 1
        stream.apply(Snapshot(base | values, number))
        outputs: list[Frame] = []
        step_until(
            lambda: bool(outputs) and outputs[-1].snapshot == number, lambda: outputs.extend(stream.step([frame]) or [])
        )
        return outputs[-1].pixels

    plain = render()
    requests = {
        "lora": {"/lora/1": str(lora)},
        "control": {"/control/1": str(net)},
        "reference": {
            "/reference": str(tmp_path / "look.png"),
            "/reference/model": str(adapter),
            "/reference/encoder": str(encoder),
        },
    }
    for name, request in requests.items():
        assert not np.array_equal(render(**request), plain), name
        assert np.array_equal(render(), plain), f"{name} is removed"
    assert not np.array_equal(render(**requests["lora"], **{"/lora/1/weight": -1.0}), plain)
    assert np.array_equal(render(**requests["lora"], **{"/lora/1/weight": 0.0}), plain), "weight 0 is no LoRA"
    assert stream.adapters.take_notes() == []
    stream.adapters.close()
    stream.close()


def test_control_and_reference_from_the_second_source(pocket: Model, tmp_path: Path) -> None:
    net = save_controlnet(tmp_path / "net", pocket.denoiser)
    adapter, encoder = save_image_adapter(tmp_path, pocket.denoiser)
    frame, bright = Frame(picture(64)), Frame(np.full((48, 48, 4), 230, np.uint8))
    requests = {
        "control": {"/control/1": str(net), "/control/1/from": "source"},
        "reference": {"/reference": "source", "/reference/model": str(adapter), "/reference/encoder": str(encoder)},
    }
    for name, request in requests.items():
        stream = Stream(pocket, 64, 64, blocking=True)
        stream.apply(Snapshot({"/steps": 1} | request))
        rendered = []
        for second in (None, Frame(picture(64)), bright):
            if second is not None:
                stream.second.show(Frame(second.pixels, len(rendered) * 100))
            outputs = stream.step([frame])
            assert outputs
            rendered.append(outputs[0].pixels)
        for one, two in pairwise(rendered):
            assert not np.array_equal(one, two), name
        stream.adapters.close()
        stream.close()


def test_an_adapter_that_cannot_be_loaded_is_one_note_and_the_others_are_installed(
    pocket: Model, tmp_path: Path
) -> None:
    lora = save_lora(tmp_path / "good.safetensors", {"unet": pocket.denoiser})
    stream = Stream(pocket, 64, 64)
    values = {"/lora/1": "nowhere", "/lora/2": str(lora), "/control/1": str(tmp_path), "/reference": "x.png"}
    values |= {"/reference/model": "gone", "/reference/encoder": "gone"}
    plain = stream.step([Frame(picture(64))]) or stream.step([])
    stream.apply(Snapshot(values, 1))
    stream.settle()
    notes = sorted(stream.adapters.take_notes())
    assert len(notes) == 3
    assert notes[0].startswith(f"ControlNet {tmp_path.name} cannot be read")
    assert notes[1] == "LoRA 'nowhere' is neither a path nor in loras/"
    assert notes[2] == "image adapter 'gone' is neither a path nor in adapters/"
    assert not any("\n" in note for note in notes)
    stream.restart()
    changed = stream.step([Frame(picture(64))]) or stream.step([])
    assert plain
    assert changed
    assert not np.array_equal(plain[0].pixels, changed[0].pixels), "the readable LoRA is in effect"
    stream.adapters.close()
    stream.close()


def test_an_architecture_without_controlnets_is_reported(tmp_path: Path) -> None:
    model = load(str(save_flux(tmp_path)), CPU, torch.float32)
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot({"/control/1": "edges"}))
    stream.settle()
    assert stream.adapters.take_notes() == ["ControlNet edges: not supported for a FLUX.1 model"]
    stream.adapters.close()
    stream.close()


def test_a_live_stream_never_waits_for_a_reference_that_keeps_changing(pocket: Model, tmp_path: Path) -> None:
    adapter, encoder = save_image_adapter(tmp_path, pocket.denoiser)
    settings = {"/reference": "source", "/reference/model": str(adapter), "/reference/encoder": str(encoder)}
    stream = Stream(pocket, 64, 64)
    stream.second.show(Frame(picture(64), 0))
    stream.apply(Snapshot({"/steps": 1} | settings, 3))
    stream.settle()
    loader, gate = stream.adapters.image_prompt.loader, threading.Event()
    load_reference = loader._load

    def load_slowly(*arguments: Any) -> Any:
        gate.wait(20)
        return load_reference(*arguments)

    loader._load = load_slowly
    before = stream.adapters.image_prompt.prompt
    try:
        for i in range(4):
            stream.second.show(Frame(picture(64), (i + 1) * REFERENCE_FRAMES))
            outputs = stream.step([Frame(picture(64), i)])
            assert outputs, "frames are finished while the reference is encoded"
        assert loader.busy
        assert stream.adapters.image_prompt.prompt is before
    finally:
        gate.set()
    step_until(lambda: stream.adapters.image_prompt.prompt is not before, lambda: stream.step([Frame(picture(64))]))
    stream.adapters.close()
    stream.close()
