"""Adapters that cannot be loaded, of every kind: one line each, without a wait, and the other slots keep working."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.models.pipelines import picture

CPU = torch.device("cpu")
#: Longest time for all the broken adapters of one kind, in seconds.
MAX_SECONDS = 60.0
#: Parameters that name an adapter's file or folder, by what the folder of good adapters calls it.
PARAMETERS = {
    "/lora/1": "lora.safetensors",
    "/control/1": "net",
    "/control/depth": "depth",
    "/reference/model": "adapter.safetensors",
    "/reference/encoder": "encoder",
}


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", CPU, torch.float32)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, pocket: Model) -> Path:
    """Return a folder with a good adapter of each kind, and a picture."""
    folder = tmp_path_factory.mktemp("good")
    save_lora(folder / "lora.safetensors", {"unet": pocket.denoiser})
    save_controlnet(folder / "net", pocket.denoiser)
    save_image_adapter(folder, pocket.denoiser)
    backbone = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=56, out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )  # fmt: skip
    settings = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8
    )
    DepthAnythingForDepthEstimation(settings).save_pretrained(folder / "depth")
    import cv2

    cv2.imwrite(str(folder / "look.png"), picture(32)[..., :3])
    return folder


def weights_of(path: Path) -> Path:
    return next(path.glob("*.safetensors")) if path.is_dir() else path


def config_of(path: Path, text: str) -> None:
    """Replace the config in a folder, or add one next to a file, where it has no effect."""
    ((path if path.is_dir() else path.parent) / "config.json").write_text(text, encoding="utf-8")


def rename_weights(path: Path) -> None:
    weights = load_file(weights_of(path))
    save_file({f"x.{key}": tensor for key, tensor in weights.items()}, weights_of(path), {"format": "pt"})


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn": lambda p: weights_of(p).write_bytes(weights_of(p).read_bytes()[:300]),
    "empty": lambda p: weights_of(p).write_bytes(b""),
    "renamed": rename_weights,
    "header of a list": lambda p: weights_of(p).write_bytes((4).to_bytes(8, "little") + b"[[]]"),
    "gone": lambda p: replace_by(p, lambda _: None),
    "empty folder": lambda p: replace_by(p, lambda q: q.mkdir()),
}
#: Damages of those that are folders.
FOLDER_DAMAGES: dict[str, Callable[[Path], object]] = {
    "nested config": lambda p: config_of(p, "[" * 100_000),
    "empty config": lambda p: config_of(p, "{}"),
    "huge config": lambda p: config_of(
        p,
        (p / "config.json").read_text(encoding="utf-8")
        .replace('"hidden_size": 24', '"hidden_size": 240000').replace('"hidden_size": 32', '"hidden_size": 320000')
        .replace('"cross_attention_dim": 192', '"cross_attention_dim": 100000000'),
    ),
    "auto_map": lambda p: config_of(p, json.dumps({"auto_map": {"AutoModel": "attack.Attack"}})),
}  # fmt: skip
LINUX_DAMAGES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda p: replace_by(p, os.mkfifo),
    "device": lambda p: replace_by(p, lambda q: q.symlink_to("/dev/zero")),
    "link to itself": lambda p: replace_by(p, lambda q: q.symlink_to(q)),
    "pipe inside": lambda p: os.mkfifo(p / "generation_config.json") if p.is_dir() else replace_by(p, os.mkfifo),
}


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_broken_adapter_is_one_line_and_the_others_stay(
    parameter: str, good: Path, pocket: Model, tmp_path: Path
) -> None:
    is_folder = (good / PARAMETERS[parameter]).is_dir()
    damages = DAMAGES | (FOLDER_DAMAGES if is_folder else {})
    damages |= LINUX_DAMAGES if sys.platform != "win32" else {}
    base = {"/steps": 1, "/lora/2": str(good / "lora.safetensors")}
    if parameter.startswith("/reference"):
        base |= {name: str(good / PARAMETERS[name]) for name in PARAMETERS if name.startswith("/reference")}
        base["/reference"] = str(good / "look.png")
    stream = Stream(pocket, 64, 64)
    plain = stream.step([Frame(picture(64))]) or stream.step([])
    stream.apply(Snapshot(base, 1))
    stream.settle()
    assert stream.adapters.take_notes() == []
    start = time.perf_counter()
    for number, (name, damage) in enumerate(damages.items(), 2):
        copy = Path(shutil.copytree(good, tmp_path / name))
        path = copy / PARAMETERS[parameter]
        damage(path)
        stream.apply(Snapshot(base | {parameter: str(path)}, number))
        stream.settle()
        stream.restart()
        outputs = stream.step([Frame(picture(64))]) or stream.step([])
        notes = stream.adapters.take_notes()
        assert len(notes) == 1, (name, notes)
        assert "\n" not in notes[0], name
        assert outputs, name
        assert plain
        assert not np.array_equal(outputs[0].pixels, plain[0].pixels), "the LoRA of the other slot is in effect"
    assert time.perf_counter() - start < MAX_SECONDS
    stream.adapters.close()
    stream.close()
