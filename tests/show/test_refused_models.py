"""Models that cannot be used, against the real command: one line and exit code 2, or the running model goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bridge.stress.scratch import Scratch
from tests.engine.checkpoints import save_sd
from tests.show.stage import Stage
from tests.waiting import until

ENGINE = ("--size", "64x64", "--steps", "1", "--device", "cpu", "--accelerate", "eager")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("model") / "sd")


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def bring_code(folder: Path) -> None:
    """Name code of the folder in every config, as models of the hub do that ask before they run it."""
    for component, kind in (("unet", "AutoModel"), ("text_encoder", "AutoModel")):
        (folder / component / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        edit(folder / component / "config.json", auto_map={kind: "evil.Model"})
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])


def pickle_weights(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (bring_code, "not supported"),
    "pickle": (pickle_weights, "--allow-pickle"),
    "nested": (lambda f: (f / "unet" / "config.json").write_text("[" * 50_000), "nested"),
    "labels": (lambda f: edit(f / "text_encoder" / "config.json", num_labels=10**9), "num_labels"),
    "timesteps": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", num_train_timesteps=2**31),
        "timesteps",
    ),
    "a library of its own": (lambda f: edit(f / "model_index.json", unet=["os", "system"]), "'os'"),
    "parts that do not fit": (
        lambda f: edit(f / "unet" / "config.json", in_channels=4, time_cond_proj_dim=48),
        "cannot be",
    ),
}


def check_one_line(output: str, folder: Path, word: str) -> None:
    lines = [line for line in output.splitlines() if line.startswith("phosphene: ")]
    assert len(lines) == 1, output[-1000:]
    assert str(folder) in lines[0]
    assert word in lines[0]
    assert "Traceback" not in output
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("kind", ["code", "labels"])
def test_render_refuses_a_broken_model_in_one_line(kind: str, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    damage, word = BROKEN[kind]
    damage(folder)
    clip = tmp_path / "clip"
    clip.mkdir()
    save_image(clip / "0.png")
    code, output = Scratch(tmp_path / "scratch").command(
        "render", str(clip), str(tmp_path / "out") + "/", "--model", str(folder), *ENGINE
    )
    assert code == 2, output[-1000:]
    check_one_line(output, folder, word)


def test_render_reports_an_adapter_that_cannot_be_read_and_goes_on(tmp_path: Path) -> None:
    clip, lora = tmp_path / "clip", tmp_path / "lora.safetensors"
    clip.mkdir()
    save_image(clip / "0.png")
    lora.write_bytes(b"no")
    code, output = Scratch(tmp_path / "scratch").command(
        "render", str(clip), str(tmp_path / "out") + "/", "--set", f"/lora/1={lora}", *ENGINE
    )
    assert code == 0, output[-1000:]
    assert output.count(f"LoRA {lora}") == 1, output
    assert "Traceback" not in output
    assert len(list((tmp_path / "out").iterdir())) == 1


def save_image(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 20, 60)).save(path)


@pytest.mark.skipif(sys.platform == "win32", reason="exit codes of POSIX")
def test_run_ends_in_one_line_where_every_engine_dies_as_it_begins(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "deadly.py").write_text("PARAMETERS = {}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    code, output = run_show(tmp_path, "--hooks", str(hooks))
    assert code == 2, output[-1000:]
    last = output.splitlines()[-1]
    assert last.startswith("phosphene: no engine begins with model pocket")
    assert "exit code -11" in last
    assert "Traceback" not in output


def run_show(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    ports = ("--osc-port", "0", "--http-port", "0", "--session", "none", "--log", "none", "--seconds", "100")
    show = ("run", "--source", "pattern:ball", "--sink", "null:", *ports, *ENGINE)
    return Scratch(tmp_path / "scratch").command(*show, *arguments, timeout=110)


def test_a_running_show_keeps_its_model_where_the_next_one_is_broken(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    with Stage(size="64x64") as stage:
        stage.wait_until_live()
        pid = stage.show.supervisor.pid
        for kind, (damage, word) in BROKEN.items():
            broken = Path(shutil.copytree(folder, tmp_path / kind))
            damage(broken)
            stage.send("/model", str(broken))
            until(lambda broken=broken: str(broken) in stage.show.supervisor.last_error, 60, f"the refusal of {kind}")
            assert word in stage.show.supervisor.last_error
            until(lambda: stage.state.snapshot().model.model == "pocket", 10, "the running model's name")
        assert (stage.show.supervisor.pid, stage.show.supervisor.starts) == (pid, 1)
        frames = stage.show.meter.frames
        until(lambda: stage.show.meter.frames > frames, 20, "frames")
    assert not os.path.exists(folder / "ran")
