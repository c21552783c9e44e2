"""Loading: the pocket model, small SD, LCM, SDXL and SD3 checkpoints, and everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engine.diffusion.stream import Stream
from engine.models import POCKET, ModelError, load, pick_device, pick_dtype
from engine.models.checkpoint import resolve
from engine.models.components import COMPONENTS
from engine.models.loading import required_memory_bytes
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import save_sd3
from tests.engine.single_file import save_single_file

CPU = torch.device("cpu")


def save_sd3_for_single_file(folder: Path) -> Path:
    """Save SD3 as its single files have it: the first text encoder's projection is the identity."""
    save_sd3(folder)
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"] = torch.eye(len(weights["text_projection.weight"]))
    save_file(weights, path, {"format": "pt"})
    return folder


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
    assert (model.latent_channels, model.factor, model.noise_schedule.consistency) == (8, 8, True)


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
    assert model.noise_schedule.consistency == (scheduler == "LCMScheduler")
    assert model.noise_schedule.prediction == ("v" if prediction == "v_prediction" else "epsilon")
    frame = one_frame(Stream(model, 64, 64))
    assert frame.pixels.shape == (64, 64, 4)


def test_a_folder_of_sdxl(tmp_path: Path) -> None:
    model = load(str(save_sdxl(tmp_path)), CPU, torch.float32)
    condition = model.encode_prompt("a red tunnel")
    assert condition.pooled is not None
    assert condition.tokens.shape[-1] == 80
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot({"/guidance/mode": "full", "/guidance": 2.0}))
    stream.settle()
    assert one_frame(stream).pixels.shape == (64, 64, 4)


def test_a_kl_autoencoder_is_encoded_by_its_mean(tmp_path: Path) -> None:
    model = load(str(save_sd(tmp_path)), CPU, torch.float32)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        expected = model.autoencoder.encode(pictures).latent_dist.mean * model.autoencoder.config.scaling_factor
        plain = pictures / 2 + 0.5
        assert torch.allclose(model.encode(plain), expected, atol=1e-5)
        assert torch.equal(model.encode(plain), model.encode(plain))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_index(folder: Path, **components: list[str]) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | components))


def write_nan(path: Path) -> None:
    weights = load_file(path)
    weights["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"})), "has no unet"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder has no weights; download the model again"),
        (lambda f: truncate(f / "unet" / "diffusion_pytorch_model.safetensors"), "cannot be loaded"),
        (lambda f: edit_index(f, unet=["diffusers", "UNet1DModel"]), "cannot be loaded|not supported"),
        (
            lambda f: edit_index(f, unet=["diffusers", "NoSuchModel"]),
            "denoiser NoSuchModel is not supported",
        ),
        (
            lambda f: write_nan(f / "unet" / "diffusion_pytorch_model.safetensors"),
            "unet holds NaN or infinity in conv_in.weight",
        ),
    ],
)
def test_a_damaged_folder_is_reported_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save_sd(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(tmp_path), CPU, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_fit_is_rejected_with_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sd(tmp_path)
    needed = required_memory_bytes(tmp_path, torch.float32)
    components = load(str(tmp_path), CPU, torch.float32).architecture.components
    modules = [components[name] for name in COMPONENTS if name in components]
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert needed == pytest.approx(count * 4, rel=0.01)
    monkeypatch.setattr("engine.models.loading.free_memory_bytes", lambda _device: needed)
    with pytest.raises(ModelError, match=r"needs 0\.0 GiB, but 0\.0 GiB are free on cpu"):
        load(str(tmp_path), CPU, torch.float32)


def test_pickles_are_rejected_unless_allowed(tmp_path: Path) -> None:
    save_sd(tmp_path)
    weights = load_file(tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle, which can run any code.*--allow-pickle"):
        load(str(tmp_path), CPU, torch.float32)
    model = load(str(tmp_path), CPU, torch.float32, EngineOptions(allow_pickle=True))
    assert one_frame(Stream(model, 64, 64)).pixels.shape == (64, 64, 4)


def test_half_precision_files_are_used_if_there_are_no_others(tmp_path: Path) -> None:
    save_sd(tmp_path)
    for component, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (tmp_path / component / f"{name}.safetensors").rename(tmp_path / component / f"{name}.fp16.safetensors")
    assert load(str(tmp_path), CPU, torch.float32).noise_schedule.prediction == "epsilon"


def test_a_hub_name_comes_from_the_cache_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"someone/something.*--offline"):
        load("someone/something", CPU, torch.float32, EngineOptions(offline=True))
    # The cache's layout: refs/main names the commit whose snapshot is the repository.
    repository = tmp_path / "models--someone--something"
    save_sd(repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("someone/something", EngineOptions(offline=True)) == repository / "snapshots" / "c0ffee"


def test_a_missing_model_is_named(tmp_path: Path) -> None:
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

    pictures = [
        one_frame(Stream(load("pocket", torch.device(d), torch.float32), 64, 64)).pixels for d in ("cpu", "cuda")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 3


def test_another_autoencoder_replaces_the_models(tmp_path: Path) -> None:
    save_sd(tmp_path / "model")
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=4
    )
    tiny.save_pretrained(tmp_path / "tiny")
    model = load(str(tmp_path / "model"), CPU, torch.float32, autoencoder=str(tmp_path / "tiny"))
    assert type(model.autoencoder).__name__ == "AutoencoderTiny"
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(model.encode(picture / 2 + 0.5), tiny.encode(picture).latents, atol=1e-5)
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "wide")
    for name, message in (
        ("wide", "16 channels at 1/8, this model 4 at 1/8"),
        ("model", "no config.json"),
        ("gone", "no such folder"),
    ):
        with pytest.raises(ModelError, match=message):
            load(str(tmp_path / "model"), CPU, torch.float32, autoencoder=str(tmp_path / name))
    with pytest.raises(ModelError, match=r"taesd.*is not downloaded"):
        load(str(tmp_path / "model"), CPU, torch.float32, EngineOptions(offline=True), autoencoder="tiny")


@pytest.mark.parametrize("save", [save_sd, save_sdxl, save_sd3_for_single_file])
def test_a_single_file_is_the_same_model_as_its_folder(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    folder = load(str(save(tmp_path / "folder")), CPU, torch.float32)
    single = load(str(save_single_file(tmp_path / "folder", tmp_path / "single.safetensors")), CPU, torch.float32)
    assert single.architecture.title == folder.architecture.title
    x, t = torch.randn(1, folder.latent_channels, 8, 8), torch.tensor([500.0])
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(single.encode(picture), folder.encode(picture), atol=1e-5)
        assert torch.allclose(single.decode(x), folder.decode(x), atol=1e-4)
        expected = folder.denoise(x, t, folder.encode_prompt("green spiral"))
        assert torch.allclose(single.denoise(x, t, single.encode_prompt("green spiral")), expected, atol=1e-4)
        assert not torch.allclose(single.denoise(x, t, single.encode_prompt("fire")), expected, atol=1e-4)


def test_an_incomplete_single_file_is_reported_in_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"some.weight": torch.zeros(2)}, foreign)
    with pytest.raises(
        ModelError, match="not recognized as a checkpoint of Stable Diffusion 3, Stable Diffusion, SDXL"
    ):
        load(str(foreign), CPU, torch.float32)
    # SD3.5 is commonly shared without its text encoders.
    path = save_single_file(save_sd3_for_single_file(tmp_path / "folder"), tmp_path / "single.safetensors")
    save_file({key: tensor for key, tensor in load_file(path).items() if not key.startswith("text_encoders.")}, path)
    with pytest.raises(ModelError, match="text_encoder") as caught:
        load(str(path), CPU, torch.float32)
    assert "\n" not in str(caught.value)
