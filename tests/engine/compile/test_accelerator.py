"""The accelerator: real builds on live weights, and every reason to keep running the module itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.adapters.lora import MergedLoras
from engine.adapters.lora_file import read_lora
from engine.compile import Accelerator
from engine.compile.accelerator import TOLERANCE
from engine.compile.artifact import CompiledArtifact
from engine.compile.dispatch import (
    Backend,
    CompiledModule,
    signature_of,
    tree_flatten,
)
from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render
from tests.engine.adapter_files import save_controlnet, save_lora
from tests.engine.checkpoints import save_sd
from tests.engine.flows import FLOWS
from tests.engine.worker.test_offline import frames
from tests.requirements_system import needs_compiler
from tests.waiting import thorough

CPU = torch.device("cpu")
compiler = needs_compiler()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


def test_an_unknown_kind_and_a_missing_compiler_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue, match="auto, eager, compile"):
        Accelerator("warp", CPU)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    accelerator = Accelerator("auto", CPU)
    assert not accelerator.enabled
    assert len(accelerator.notes) == 1
    assert "no C++ compiler" in accelerator.notes[0]
    component = CompiledModule("denoiser", nn.Identity())
    component(torch.ones(1, 2))
    accelerator.poll([component])
    assert accelerator.state == "eager"


def test_a_wrong_output_and_a_failed_build_leave_the_module_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.compile.accelerator.missing_requirement", lambda *_: "")
    model = load(str(save_sd(tmp_path / "model", tiny=True)), CPU, torch.float32)
    decoder = model.codec.decoder
    latents = torch.randn(1, 4, 8, 8)
    expected = model.decode(latents)
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    for call, note in (
        (
            lambda tensors: torch.full_like(decoder.module(tensors[0]), 0.3),
            "the decoder runs uncompiled: output error of",
        ),
        (None, "the decoder runs uncompiled:"),
    ):
        decoder.rejected.clear()
        decoder.requested = signature_of(tree_flatten(((latents,), {}), []), [latents])
        if call is None:
            monkeypatch.undo()
            monkeypatch.setattr(accelerator, "_folder", Path("/proc/none"))
        else:
            monkeypatch.setattr(accelerator, "_load_or_build", lambda *_, call=call: Backend(call))
        accelerator.compile_all(lambda: [decoder])
        assert not decoder.backends
        assert len(accelerator.notes) == 2, "the reason, and the final state"
        assert accelerator.notes[0].startswith(note)
        accelerator.notes.clear()
    assert torch.equal(model.decode(latents), expected)


@compiler
def test_a_compiled_model_equals_the_module_and_follows_its_weights(tmp_path: Path, cache: Path) -> None:
    folder = save_sd(tmp_path / "model")
    model = load(str(folder), CPU, torch.float32)
    denoiser = model.architecture.compiled_denoiser
    condition = model.encode_prompt("green spiral")
    accelerator = Accelerator("compile", CPU, cache / "compiled")

    def both(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, t = torch.randn(rows, 4, 8, 8), torch.full((rows,), 400.0)
        with torch.inference_mode():
            compiled = model.denoise(x, t, condition)
            backends, denoiser.backends = denoiser.backends, {}
            eager = model.denoise(x, t, condition)
            denoiser.backends = backends
        return compiled, eager

    both(2)
    accelerator.compile_all(lambda: [denoiser])
    assert accelerator.state == "compiled", accelerator.notes
    assert [type(backend.call) for backend in denoiser.backends.values()] == [CompiledArtifact]
    for rows in (1, 2, 5):
        compiled, eager = both(rows)
        assert not torch.equal(compiled, eager), "the module itself did not run"
        error = (compiled - eager).square().mean().sqrt() / eager.square().mean().sqrt()
        assert float(error) < TOLERANCE[torch.float32]

    before = both(1)[0]
    artifact = next(iter(denoiser.backends.values())).call
    assert isinstance(artifact, CompiledArtifact)
    t = torch.full((1,), 400.0)
    with torch.inference_mode():
        prompt = condition.rows(1)
        counts = []
        for _ in range(3):
            model.denoise(torch.randn(1, 4, 8, 8), t, prompt)
            counts.append(artifact.static_runs)
    assert counts == [counts[0]] * 3, "the static part runs once per prompt and timesteps"
    loras = MergedLoras({"unet": model.denoiser}, denoiser.mark_weights_changed)
    file = save_lora(tmp_path / "l.safetensors", {"unet": model.denoiser})
    loras.install([read_lora(file, "StableDiffusionLoraLoaderMixin", {"unet": model.denoiser})])
    loras.set_weights([1.0])
    compiled, eager = both(1)
    assert float((compiled - before).abs().max()) > 1e-3, "the LoRA takes effect"
    assert float((compiled - eager).abs().max()) < 1e-3
    loras.set_weights([0.0])
    with torch.inference_mode():
        model.denoiser.conv_in.weight.mul_(1.5)
    denoiser.mark_weights_changed()
    compiled, eager = both(1)
    assert float((eager - before).abs().max()) > 1e-2, "the convolution's weight has changed"
    assert float((compiled - eager).abs().max()) < 1e-3, "and was packed again"
    with torch.inference_mode():
        model.denoiser.conv_in.weight.div_(1.5)
    denoiser.mark_weights_changed()

    # Another model of the same architecture, with other weights, uses the same build.
    files = sorted((cache / "compiled").glob("*.json"))
    assert len(files) == 1
    built_at = files[0].stat().st_mtime_ns
    other = load(str(folder), CPU, torch.float32)
    with torch.inference_mode():
        other.denoiser.conv_out.weight.mul_(3.0)
        other.denoise(torch.randn(2, 4, 8, 8), torch.full((2,), 400.0), condition)
        accelerator.compile_all(lambda: [other.architecture.compiled_denoiser])
        assert other.architecture.compiled_denoiser.backends
    assert [file.stat().st_mtime_ns for file in files] == [built_at]
    damaged = shutil.copytree(cache / "compiled", tmp_path / "damaged") / files[0].name
    damaged.with_suffix(".pt2").write_bytes(damaged.with_suffix(".pt2").read_bytes()[:1000])
    assert accelerator._load_cached(damaged, other.architecture.compiled_denoiser) is None, "a damaged build is deleted"
    assert not list((tmp_path / "damaged").iterdir())


@compiler
@thorough
def test_a_compiled_rendering_is_repeatable(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sd(tmp_path / "model", tiny=True)
    monkeypatch.setenv("PHOSPHENE_CACHE", str(cache))
    snapshot = Snapshot({"/model": str(tmp_path / "model"), "/size": "64x64", "/dtype": "float32"})
    threads = torch.get_num_threads()
    before = set(cache.rglob("*.json"))
    eager, *compiled = (
        np.stack([frame.pixels for frame in render(frames(4), snapshot, EngineOptions("cpu", accelerate=kind))])
        for kind in ("auto", "compile", "compile")
    )
    assert torch.get_num_threads() == threads, "the compiler's core is returned"
    assert np.array_equal(*compiled)
    assert np.abs(eager.astype(int) - compiled[0]).max() <= 2
    assert len(set(cache.rglob("*.json")) - before) == 3, "denoiser, encoder and decoder"


@compiler
def test_the_builder_is_started_early_if_the_cache_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = CompiledModule("denoiser", nn.Identity())
    accelerator = Accelerator("compile", CPU, tmp_path)
    threads = torch.get_num_threads()
    accelerator.start_builder_early()
    builder = accelerator._builder
    assert builder is not None
    accelerator.poll([component])
    assert accelerator._builder is builder, "nothing is requested yet"
    assert torch.get_num_threads() == max(1, threads - 1)
    builder.kill()
    builder.wait()
    accelerator.start_builder_early()
    assert accelerator._builder not in (None, builder), "a new one after it died"
    builder = accelerator._builder
    assert builder is not None
    monkeypatch.setattr(accelerator, "_keep_builder_until", 0.0)
    accelerator.poll([component])
    assert accelerator._builder is None, "nothing was requested in time"
    assert builder.poll() is not None
    assert torch.get_num_threads() == threads
    (tmp_path / "one.json").touch()
    accelerator.start_builder_early()
    assert accelerator._builder is None, "the cache may already hold the build"


@compiler
@thorough
def test_a_compiled_controlnet_steers_a_compiled_denoiser(tmp_path: Path) -> None:
    model = load(str(save_sd(tmp_path / "model")), CPU, torch.float32)
    save_controlnet(tmp_path / "control", model.denoiser)
    values = {
        "/control/1": str(tmp_path / "control"),
        "/control/1/from": "input",
        "/guidance/mode": "none",
        "/steps": 1,
    }
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot(values))
    stream.settle()
    frame = next(iter(frames(1)))
    eager = stream.step([frame])
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    components = [model.architecture.compiled_denoiser, *stream.adapters.compiled_modules]
    accelerator.compile_all(lambda: components)
    assert [len(component.backends) for component in components] == [1, 1], accelerator.notes
    compiled = stream.step([frame])
    assert eager
    assert compiled
    assert np.abs(eager[0].pixels.astype(int) - compiled[0].pixels).max() <= 2
    # Another weight needs no other build.
    stream.apply(Snapshot(values | {"/control/1/weight": 0.3}))
    stream.settle()
    weaker = stream.step([frame])
    assert weaker
    assert model.architecture.compiled_denoiser.requested is None
    assert np.abs(compiled[0].pixels.astype(int) - weaker[0].pixels).max() > 2
    stream.close()


@pytest.mark.parametrize("name", ["lumina", "lumina2"])
def test_an_architecture_that_cannot_be_compiled_runs_uncompiled(name: str, tmp_path: Path) -> None:
    model = load(str(FLOWS[name](tmp_path / "model")), CPU, torch.float32)
    stream = Stream(model, 64, 64)
    frame = Frame(np.full((64, 64, 4), 90, np.uint8))
    first = stream.step([frame])
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    accelerator.enabled = True  # with or without a compiler here: the export already fails
    accelerator.compile_all(lambda: [model.architecture.compiled_denoiser])
    assert accelerator.state == "eager"
    assert sum("the denoiser runs uncompiled" in note for note in accelerator.notes) == 1
    stream.restart()
    second = stream.step([frame])
    assert (first is None) == (second is None)
    assert model.architecture.compiled_denoiser.requested is None
    stream.close()
