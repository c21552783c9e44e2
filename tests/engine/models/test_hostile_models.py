"""Models that bring code or pickles: refused in one line, and no code of theirs runs."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters.base import resolve
from engine.adapters.controlnet import read_controlnet
from engine.adapters.depth import read_depth_estimator
from engine.adapters.ip_adapter import read_ip_adapter
from engine.adapters.lora_file import read_lora
from engine.models import Model, load
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.checkpoints import save_sd
from tests.engine.single_file import save_single_file

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


class Bomb:
    """Marks that it was unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each call that would load a pickle or ask the user, and fail it."""
    calls: list[str] = []

    def record(name: str) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            calls.append(name)
            raise RuntimeError(f"{name} was called")

        return fail

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (builtins, "input")):
        monkeypatch.setattr(owner, name, record(name))
    return calls


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", CPU, torch.float32)


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def to_pickle(file: Path, name: str) -> None:
    """Replace a weights file by a pickle."""
    file.unlink()
    with (file.parent / name).open("wb") as stream:
        pickle.dump(Bomb(), stream)


def index_of(folder: Path, name: str, target: str) -> None:
    """Replace a component's weights by an index that names ``target``."""
    file = folder / name
    keys = list(load_file(file))
    (folder / "elsewhere.safetensors").write_bytes(file.read_bytes())
    file.rename(file.parent / "part.safetensors")
    with (file.parent / "part.bin").open("wb") as stream:
        pickle.dump(Bomb(), stream)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, target)}
    (file.parent / f"{file.name}.index.json").write_text(json.dumps(index), encoding="utf-8")


PICKLES: dict[str, Callable[[Path], object]] = {
    "unet": lambda f: to_pickle(f / UNET, "diffusion_pytorch_model.bin"),
    "text encoder": lambda f: to_pickle(f / "text_encoder/model.safetensors", "pytorch_model.bin"),
    "autoencoder": lambda f: to_pickle(f / "vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.pt"),
    "index to a pickle": lambda f: index_of(f, UNET, "part.bin"),
    "index to another folder": lambda f: index_of(f, UNET, "../elsewhere.safetensors"),
    "index to an absolute path": lambda f: index_of(f, UNET, str(f / "elsewhere.safetensors")),
    "index of a text encoder": lambda f: index_of(f, "text_encoder/model.safetensors", "part.bin"),
    "pickle called safetensors": lambda f: (f / UNET).write_bytes(pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("attack", PICKLES)
def test_no_pickle_is_loaded_from_a_model(attack: str, tmp_path: Path, no_pickle: list[str]) -> None:
    save_sd(tmp_path)
    PICKLES[attack](tmp_path)
    with pytest.raises(InvalidValue) as caught:
        load(str(tmp_path), CPU, torch.float32)
    assert no_pickle == []
    assert "\n" not in str(caught.value)


def test_no_pickle_is_loaded_as_an_adapter_or_an_autoencoder(
    tmp_path: Path, pocket: Model, no_pickle: list[str]
) -> None:
    save_sd(tmp_path / "sd")
    unet = pocket.denoiser
    adapter, encoder = save_image_adapter(tmp_path, unet)
    net = save_controlnet(tmp_path / "net", unet)
    to_pickle(net / "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    shutil.copytree(tmp_path / "sd" / "vae", tmp_path / "vae")
    to_pickle(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    shutil.copytree(encoder, tmp_path / "bad-encoder")
    to_pickle(tmp_path / "bad-encoder" / "model.safetensors", "pytorch_model.bin")
    shutil.copytree(tmp_path / "bad-encoder", tmp_path / "depth")
    (tmp_path / "depth" / "config.json").write_text('{"model_type": "dpt"}', encoding="utf-8")
    for name in ("adapter.bin", "lora.pt", "lora.bin", "net.pth"):
        with (tmp_path / name).open("wb") as stream:
            pickle.dump(Bomb(), stream)
    components = {"unet": unet}

    def read(name: str) -> object:
        return read_lora(tmp_path / name, "StableDiffusionLoraLoaderMixin", components, unet.config)

    attempts: list[Callable[[], object]] = [
        lambda: read_controlnet(net, unet),
        lambda: read_controlnet(tmp_path / "net.pth", unet),
        lambda: read_ip_adapter(tmp_path / "adapter.bin", encoder, unet),
        lambda: read_ip_adapter(adapter, tmp_path / "bad-encoder", unet),
        lambda: read_depth_estimator(str(tmp_path / "depth"), unet),
        lambda: read("lora.pt"),
        lambda: read("lora.bin"),
        lambda: load(str(tmp_path / "sd"), CPU, torch.float32, autoencoder=str(tmp_path / "vae")),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidValue) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert no_pickle == []


def test_permitted_pickles_are_read_as_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sd(tmp_path)
    for file, name in ((UNET, "diffusion_pytorch_model.bin"), ("text_encoder/model.safetensors", "pytorch_model.bin")):
        weights = load_file(tmp_path / file)
        (tmp_path / file).unlink()
        torch.save(weights, (tmp_path / file).parent / name)
    modes, load_weights = [], torch.load

    def record(*arguments: Any, **options: Any) -> Any:
        modes.append(options.get("weights_only"))
        return load_weights(*arguments, **options)

    monkeypatch.setattr(torch, "load", record)
    load(str(tmp_path), CPU, torch.float32, EngineOptions(allow_pickle=True))
    assert modes == [True, True]


CLASSES: dict[str, Callable[[Path], object]] = {
    "automatic class": lambda f: edit(f / "model_index.json", text_encoder=["transformers", "AutoModel"]),
    "another library": lambda f: edit(f / "model_index.json", unet=["attack", "Attack"]),
    "a function": lambda f: edit(f / "model_index.json", text_encoder=["transformers", "pipeline"]),
    "a pipeline": lambda f: edit(f / "model_index.json", vae=["diffusers", "DiffusionPipeline"]),
    "a nested class": lambda f: edit(f / "model_index.json", unet=["diffusers", "UNet2DConditionModel.from_config"]),
    "odd types": lambda f: edit(f / "model_index.json", unet=[["diffusers"], {"a": 1}]),
    "text": lambda f: edit(f / "model_index.json", unet="UNet2DConditionModel"),
    "module of a text encoder": lambda f: edit(f / "text_encoder/config.json", auto_map={"AutoModel": "attack.A"}),
    "module of a tokenizer": lambda f: edit(
        f / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["attack.A", None]}
    ),
    "module of a denoiser": lambda f: edit(f / "unet/config.json", auto_map={"AutoModel": "attack.A"}),
    "class of a config": lambda f: edit(f / "unet/config.json", _class_name="ControlNetModel"),
    "quantized": lambda f: edit(f / "unet/config.json", quantization_config={"quant_method": "torchao"}),
}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("attack", CLASSES)
def test_classes_come_from_a_list_and_modules_never_run(
    attack: str, single: bool, tmp_path: Path, no_pickle: list[str]
) -> None:
    folder, name = save_sd(tmp_path / "sd"), str(tmp_path / "sd")
    if single:
        name = str(save_single_file(folder, tmp_path / "single.safetensors"))
        folder = tmp_path / "single"
    marker = tmp_path / "code-has-run"
    for part in ("", "unet", "vae", "text_encoder", "tokenizer"):
        (folder / part / "attack.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    CLASSES[attack](folder)
    with pytest.raises(InvalidValue) as caught:
        load(name, CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert no_pickle == []
    assert not marker.exists()


def test_a_lora_that_is_a_folder_is_refused(tmp_path: Path, pocket: Model) -> None:
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    save_lora(folder / "pytorch_lora_weights.safetensors", {"unet": pocket.denoiser})
    with pytest.raises(InvalidValue):
        read_lora(resolve(str(folder), "loras", "LoRA"), "StableDiffusionLoraLoaderMixin", {"unet": pocket.denoiser})


def test_a_lora_with_nan_is_refused(tmp_path: Path, pocket: Model) -> None:
    path = save_lora(tmp_path / "nan.safetensors", {"unet": pocket.denoiser})
    weights = load_file(path)
    save_file({key: tensor * float("nan") for key, tensor in weights.items()}, path)
    with pytest.raises(InvalidValue, match="NaN or infinity"):
        read_lora(path, "StableDiffusionLoraLoaderMixin", {"unet": pocket.denoiser}, pocket.denoiser.config)
