"""Requests to the hub: none with ``offline``, none for adapters, and none for names that may not be downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, ControlNetModel
from safetensors.torch import save_file

from bridge.stress.scratch import HubTrap
from engine.models import load
from tests.engine.adapter_files import save_image_adapter
from tests.engine.checkpoints import save_sd
from tests.engine.single_file import save_single_file

#: Tries every loader with each name, in a process whose hub is a stand-in; prints what each raised.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from engine.adapters.base import resolve
from engine.adapters.controlnet import read_controlnet
from engine.adapters.depth import read_depth_estimator
from engine.adapters.ip_adapter import read_ip_adapter
from engine.adapters.lora_file import read_lora
from engine.models import load
from engine.shared.hub_environment import configure_hub
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

folder, part, offline = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "offline"
cpu = torch.device("cpu")
configure_hub(offline)
pocket = load("pocket", cpu, torch.float32)
unet = pocket.denoiser
options = EngineOptions("cpu", offline=offline, downloads=frozenset() if sys.argv[3] == "exposed" else None)
answers = {}

def attempt(name, work):
    try:
        work()
        answers[name] = ""
    except InvalidValue as error:
        answers[name] = str(error)

if part == "adapters":
    name = "somebody/something"
    attempt("controlnet", lambda: read_controlnet(resolve(name, "controlnets", "ControlNet", hub=True), unet))
    attempt("controlnet file", lambda: read_controlnet(folder / "net.safetensors", unet))
    attempt("depth", lambda: read_depth_estimator(name, unet))
    attempt("depth with a named backbone", lambda: read_depth_estimator(str(folder / "backbone"), unet))
    attempt("encoder", lambda: resolve(name, "adapters", "image encoder", hub=True))
    attempt("adapter of another model", lambda: read_ip_adapter(folder / "adapter.safetensors", folder / "peft", unet))
    attempt("missing encoder", lambda: read_ip_adapter(folder / "adapter.safetensors", Path(name), unet))
    attempt("lora", lambda: resolve(name, "loras", "LoRA"))
    attempt("missing lora", lambda: read_lora(folder / "no.safetensors", "StableDiffusionLoraLoaderMixin", {}, {}))
else:
    for name in ("somebody/something", "odd--name/x", str(folder / "bare.safetensors"), "models/missing"):
        attempt(name, lambda: load(name, cpu, torch.float32, options))
    for name in ("somebody/something", "tiny"):
        attempt("autoencoder " + name, lambda: load(str(folder / "sd"), cpu, torch.float32, options, autoencoder=name))
    attempt("single file", lambda: load(str(folder / "single.safetensors"), cpu, torch.float32, options))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_sd(folder / "sd")
    save_single_file(folder / "sd", folder / "single.safetensors")
    (folder / "bare.safetensors").write_bytes((folder / "single.safetensors").read_bytes())
    unet = load("pocket", torch.device("cpu"), torch.float32).denoiser
    save_image_adapter(folder, unet)
    net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    save_file(net.state_dict(), folder / "net.safetensors")
    (folder / "peft").mkdir()
    for file in (folder / "encoder").iterdir():
        (folder / "peft" / file.name).write_bytes(file.read_bytes())
    adapter = {"base_model_name_or_path": "somebody/something"}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    AutoencoderTiny().save_pretrained(folder / "backbone")  # any weights
    config = {"model_type": "depth_anything", "backbone": "somebody/something", "use_pretrained_backbone": False}
    (folder / "backbone" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def run(folder: Path, tmp_path: Path, part: str, mode: str) -> tuple[dict[str, str], list[str]]:
    """Run the program; return what each loader answered, and the requests that reached the hub's stand-in."""
    with HubTrap() as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
        }
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), part, mode],
            capture_output=True, text=True, env=environment, timeout=120, check=False,
        )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout.splitlines()[-1]), hub.requests


def test_adapters_never_ask_the_hub(folder: Path, tmp_path: Path) -> None:
    answers, requests = run(folder, tmp_path, "adapters", "online")
    assert requests == []
    assert answers.pop("controlnet file") == "", "its settings are those of the model"
    assert all(answers.values()), answers
    assert "adapters are not downloaded" in answers["controlnet"]
    assert "backbone" in answers["depth with a named backbone"]
    assert "adapter_config.json" in answers["adapter of another model"]
    assert not any("\n" in answer for answer in answers.values())


@pytest.mark.parametrize("mode", ["offline", "exposed"])
def test_models_ask_the_hub_neither_offline_nor_for_others(mode: str, folder: Path, tmp_path: Path) -> None:
    answers, requests = run(folder, tmp_path, "models", mode)
    assert requests == []
    remedy = "--offline" if mode == "offline" else "--allow-downloads"
    assert remedy in answers["somebody/something"]
    assert remedy in answers["autoencoder tiny"]
    assert remedy in answers[str(folder / "bare.safetensors")]
    assert answers["single file"] == "", "its settings are next to it"


def test_the_stand_in_of_the_hub_notices_requests(folder: Path, tmp_path: Path) -> None:
    _, requests = run(folder, tmp_path, "models", "online")
    assert any("somebody/something" in request for request in requests)
    assert not any("harness" in request or "telemetry" in request for request in requests)
