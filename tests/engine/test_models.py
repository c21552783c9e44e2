"""Loading: the pocket model, SD, LCM and SDXL folders made here, and every way of being wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine.mailbox import Frame
from engine.models import ModelError, load, pick_device, pick_dtype
from engine.models.loading import POCKET
from engine.parameters import Snapshot
from engine.stream import Stream
from tests.engine.checkpoints import save_sd, save_sdxl

CPU = torch.device("cpu")


def one_frame(stream: Stream) -> Frame:
    import numpy as np

    outputs = stream.step([Frame(np.full((stream.height, stream.width, 4), 90, np.uint8))])
    while not outputs:
        outputs = stream.step([])
    return outputs[0]


def test_the_pocket_model_is_small_and_standard() -> None:
    files = [path for path in POCKET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert {"model_index.json", "scheduler_config.json", "vocab.json", "merges.txt"} <= {path.name for path in files}
    pipeline = StableDiffusionPipeline.from_pretrained(POCKET)
    assert type(pipeline.vae).__name__ == "AutoencoderTiny"
    model = load("pocket", CPU, torch.float32)
    assert (model.latent_channels, model.factor, model.noising.consistency) == (8, 8, True)


@pytest.mark.parametrize(
    ("scheduler", "prediction", "tiny"),
    [
        ("DDIMScheduler", "epsilon", False),
        ("EulerDiscreteScheduler", "v_prediction", False),
        ("LCMScheduler", "epsilon", True),
    ],
)
def test_a_folder_of_stable_diffusion(tmp_path: Path, scheduler: str, prediction: str, tiny: bool) -> None:
    model = load(str(save_sd(tmp_path, scheduler, prediction, tiny)), CPU, torch.float32)
    assert model.noising.consistency == (scheduler == "LCMScheduler")
    assert model.noising.prediction == ("v" if prediction == "v_prediction" else "epsilon")
    frame = one_frame(Stream(model, 64, 64))
    assert frame.pixels.shape == (64, 64, 4)


def test_a_folder_of_sdxl(tmp_path: Path) -> None:
    model = load(str(save_sdxl(tmp_path)), CPU, torch.float32)
    condition = model.encode_prompt("a red tunnel")
    assert condition.pooled is not None
    assert condition.tokens.shape[-1] == 80
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot({"/guidance/mode": "full", "/guidance": 2.0}), wait=True)
    assert one_frame(stream).pixels.shape == (64, 64, 4)


def test_a_kl_autoencoder_is_encoded_by_its_mean(tmp_path: Path) -> None:
    model = load(str(save_sd(tmp_path)), CPU, torch.float32)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        expected = model.autoencoder.encode(pictures).latent_dist.mean * model.autoencoder.config.scaling_factor
        assert torch.allclose(model.encode(pictures), expected, atol=1e-5)
        assert torch.equal(model.encode(pictures), model.encode(pictures))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"})), "has no unet"),
    ],
)
def test_a_broken_folder_is_one_clear_line(tmp_path: Path, spoil: object, told: str) -> None:
    save_sd(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=told) as caught:
        load(str(tmp_path), CPU, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_missing_model_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load(str(tmp_path / "nowhere"), CPU, torch.float32)
    checkpoint = tmp_path / "old.ckpt"
    checkpoint.write_bytes(b"x")
    with pytest.raises(ModelError, match="safetensors"):
        load(str(checkpoint), CPU, torch.float32)


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ModelError, match="flux-capacitor"):
        pick_device("flux-capacitor")
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("auto", torch.device("cuda")) is torch.float16
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_seed_on_the_gpu_gives_nearly_the_same_picture() -> None:
    import numpy as np

    pictures = [one_frame(Stream(load("pocket", torch.device(d), torch.float32), 64, 64)).pixels for d in ("cpu", "cuda")]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 3
