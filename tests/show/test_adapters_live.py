"""The pocket model with all adapters on: a minute of random changes, another model, models that cannot be loaded."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models import POCKET, load
from engine.shared.table import TABLE
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.show.stage import Stage
from tests.waiting import MINUTE, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("adapters")
    model = load("pocket", torch.device("cpu"), torch.float32)
    parts = {"unet": model.denoiser, "text_encoder": model.architecture.components["text_encoder"]}
    loras = [save_lora(folder / f"{i}.safetensors", parts, seed=i) for i in range(2)]
    net = save_controlnet(folder / "net", model.denoiser)
    adapter, encoder = save_image_adapter(folder, model.denoiser)
    cv2.imwrite(str(folder / "look.png"), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    values = {"lora/1": loras[0], "lora/2": loras[1], "control/1": net, "reference": folder / "look.png"}
    values |= {"reference/model": adapter, "reference/encoder": encoder}
    with Stage(second="pattern:checker") as running:
        running.wait_until_live()
        for name, path in values.items():
            running.send(f"/{name}", str(path))
        until(lambda: running.engine.snapshot == running.state.number, 20, "all adapters in effect")
        yield running


def is_changed_at_random(name: str) -> bool:
    """Return whether the minute changes a parameter: live ones of models, adapters, time and picture, without files."""
    roots = (
        "/lora",
        "/control",
        "/reference",
        "/feedback",
        "/smoothing",
        "/consistency",
        "/seed/travel",
        "/tempo",
        "/input",
        "/output",
        "/mask",
        "/mix",
        "/eta",
        "/guidance/embedded",
    )
    return name.startswith(roots) and TABLE[name].kind in ("float", "int", "bool", "choice") and name != "/output/rate"


def test_a_minute_of_random_changes_leaves_no_gap(stage: Stage) -> None:
    rng = random.Random(9)
    names = [name for name in TABLE if is_changed_at_random(name)]
    assert len(names) > 50
    process = psutil.Process(stage.show.supervisor.pid)
    errors, rejected, sizes = stage.show.supervisor.errors, stage.state.rejected, []
    stage.audience.shown.clear()
    start = due = time.perf_counter()
    while time.perf_counter() - start < MINUTE:
        parameter = TABLE[rng.choice(names)]
        if parameter.kind == "choice":
            stage.send(parameter.name, rng.choice([c for c in parameter.choices if c != "depth"]))
        elif parameter.kind == "bool":
            stage.send(parameter.name, rng.random() < 0.5)
        else:
            low, high = parameter.low, parameter.high
            stage.send(
                parameter.name,
                rng.uniform(low, high) if parameter.kind == "float" else rng.randint(int(low), int(high)),
            )
        sizes.append(process.memory_info().rss)
        due += 0.05
        time.sleep(max(0.0, due - time.perf_counter()))
    gaps = stage.audience.gaps(start)
    rate = stage.audience.count_transformed(start) / MINUTE
    first, last = np.median(sizes[200:400]) / 2**20, np.median(sizes[-200:]) / 2**20
    print(
        f"{len(names)} parameters, 20 changes a second: longest gap {gaps.max() * 1000:.0f} ms, "
        f"median {np.median(gaps) * 1000:.0f} ms, {rate:.1f} new frames a second, memory {first:.0f} to {last:.0f} MiB"
    )
    assert stage.show.supervisor.errors == errors, stage.show.supervisor.last_error
    assert stage.state.rejected == rejected
    assert gaps.max() < 3 * np.median(gaps)
    assert rate > 1.0
    assert last < first * 1.1
    assert stage.show.supervisor.starts == 1


def test_another_model_fades_in_while_the_first_one_runs(stage: Stage, tmp_path: Path) -> None:
    for name in ("/lora/1", "/lora/2", "/control/1", "/reference"):
        stage.send(name, "")
    stage.send("/reset")
    stage.send("/steps", 1)
    stage.send("/model/fade", 3.0)
    other = tmp_path / "other"
    shutil.copytree(POCKET, other)
    process = psutil.Process(stage.show.supervisor.pid)
    until(lambda: stage.engine.snapshot == stage.state.number and not stage.engine.loading, 20, "no adapters")
    time.sleep(3.0)
    before = process.memory_info().rss / 2**20
    stage.audience.shown.clear()
    start = time.perf_counter()
    time.sleep(3.0)
    stage.send("/model", str(other))
    reports: set[str] = set()
    until(lambda: reports.add(stage.engine.progress) or stage.engine.fading, 30, "the fade")
    until(lambda: not stage.engine.fading, 20, "the end of the fade")
    end = time.perf_counter()
    time.sleep(3.0)
    gaps = stage.audience.gaps(start)
    after = process.memory_info().rss / 2**20
    print(
        f"another model after {end - start - 3:.1f} s with its fade: longest gap {gaps.max() * 1000:.0f} ms, "
        f"median {np.median(gaps) * 1000:.0f} ms, memory {before:.0f} MiB before, {after:.0f} MiB after"
    )
    assert stage.engine.model == str(other)
    assert any(text.startswith(("reading", "warming")) for text in reports), reports
    assert gaps.max() < 3 * np.median(gaps)
    assert after < before + 40, "one model in memory again"
    assert stage.show.supervisor.starts == 1
    stage.send("/model", "pocket")
    until(lambda: stage.engine.model == "pocket" and not stage.engine.fading, 40, "the pocket model")


def unloadable_models(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield names of models that cannot be loaded, with a part of each one's error."""
    yield str(folder / "missing"), "no such folder or file"
    half = folder / "half"
    shutil.copytree(POCKET, half)
    for file in (half / "unet").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    yield str(half), "cannot be loaded"
    other = folder / "class"
    shutil.copytree(POCKET, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "NoSuchModel"]}))
    yield str(other), "denoiser NoSuchModel is not supported"
    nan = folder / "nan"
    shutil.copytree(POCKET, nan)
    weights = next(nan.glob("text_encoder/*.safetensors"))
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    yield str(nan), "holds NaN or infinity"
    large = folder / "large"
    shutil.copytree(POCKET, large)
    write_sparse_weights(large / "unet" / "diffusion_pytorch_model.safetensors", 2**40)
    yield str(large), "GiB are free on cpu"


def write_sparse_weights(path: Path, size: int) -> None:
    """Write a weights file that claims ``size`` bytes and occupies almost none on the disk."""
    header = json.dumps({"weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line_and_the_stream_keeps_running(
    stage: Stage, tmp_path: Path
) -> None:
    stage.audience.shown.clear()
    start = time.perf_counter()
    for name, error in unloadable_models(tmp_path):
        errors = stage.show.supervisor.errors
        stage.send("/model", name)
        until(lambda errors=errors: stage.show.supervisor.errors > errors, 20, f"the error {error!r}")  # type: ignore[misc]
        assert error in stage.show.supervisor.last_error
        assert "\n" not in stage.show.supervisor.last_error
        until(lambda: stage.state.snapshot().text("/model") == "pocket", 5, "the running model in the state")
        assert stage.show.supervisor.errors == errors + 1
    assert stage.engine.model == "pocket"
    assert stage.audience.gaps(start).max() < 0.5
    assert stage.audience.count_transformed(start) > 4
