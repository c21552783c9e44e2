"""Parts and what runs them: shapes, fusions, a real build on live weights, and everything that keeps a part as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.adapters.lora import Loras, read
from engine.compile import Accelerator
from engine.compile.accelerator import TOLERANCE
from engine.compile.artifact import CompiledArtifact
from engine.compile.builder import exported, recipe
from engine.compile.dispatch import (
    MAX_ROWS,
    Backend,
    CompiledModule,
    example_inputs,
    signature_of,
    tree_flatten,
    tree_unflatten,
)
from engine.compile.fx_source import FxSource, constants, write_source
from engine.compile.partition import dynamic_inputs
from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render
from tests.engine.adapter_files import save_controlnet, save_lora
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import FLOWS
from tests.engine.worker.test_offline import frames
from tests.requirements_system import needs_compiler
from tests.waiting import thorough

CPU = torch.device("cpu")
compiler = needs_compiler()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What several tests compile is compiled once."""
    return tmp_path_factory.mktemp("cache")


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)

    def forward(self, x: torch.Tensor, added: dict[str, torch.Tensor] | None = None, return_dict: bool = True) -> Any:
        return (x * self.scale + (added["more"] if added else 0.0),)


def test_a_call_is_taken_apart_and_put_together() -> None:
    call = ((torch.zeros(2, 3), [torch.ones(2)], None), {"added": {"more": torch.ones(4, 1)}, "return_dict": False})
    tensors: list[torch.Tensor] = []
    form = tree_flatten(call, tensors)
    assert [tuple(tensor.shape) for tensor in tensors] == [(2, 3), (2,), (4, 1)]
    again = tree_unflatten(json.loads(json.dumps(form)), iter(tensors))
    assert again[1]["return_dict"] is False
    assert again[0][2] is None
    assert again[1]["added"]["more"] is tensors[2]
    shape = signature_of(form, tensors)
    assert shape.tensors == (("float32", (3,), True), ("float32", (), True), ("float32", (4, 1), False))
    tensors = [torch.zeros(7, 3), torch.ones(7), torch.ones(4, 1)]
    assert signature_of(form, tensors) == shape, "another batch is the same shape"
    assert [tuple(tensor.shape) for tensor in example_inputs(shape, 5, CPU)] == [(5, 3), (5,), (4, 1)]


def test_a_part_is_its_module_until_something_faster_is_there() -> None:
    plain = [True]
    part = CompiledModule("denoiser", Double(), lambda: plain[0])
    x = torch.ones(2, 3)
    assert torch.equal(part(x, return_dict=False)[0], 2 * x)
    shape = part.requested
    assert shape is not None
    part.backends[shape] = Backend(lambda tensors: (tensors[0] * 5,))
    assert torch.equal(part(x, return_dict=False)[0], 5 * x)
    assert torch.equal(part(torch.ones(9, 3), return_dict=False)[0], torch.full((9, 3), 5.0)), "any number of rows"
    assert torch.equal(part(torch.ones(MAX_ROWS + 1, 3), return_dict=False)[0], torch.full((MAX_ROWS + 1, 3), 2.0))
    assert part.requested is None, "more rows than a run takes are no reason to build it again"
    part.requested = shape  # by a call that was under way when the run came
    accelerator = Accelerator("eager", CPU)
    accelerator.enabled = True
    accelerator.poll([part])
    assert accelerator.state == "eager", "it is not equipped twice"
    assert torch.equal(part(x)[0], 2 * x), "another call is another shape"
    assert part.requested != shape
    part.rejected.add(part.requested)  # type: ignore[arg-type]
    part(x)
    assert part.requested is None, "what was refused is not asked for again"
    plain[0] = False
    assert torch.equal(part(x, return_dict=False)[0], 2 * x), (
        "what its configuration does not say is the module's to do"
    )


def test_a_kind_that_does_not_exist_and_a_missing_compiler_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue, match="auto, eager, compile"):
        Accelerator("warp", CPU)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    accelerator = Accelerator("auto", CPU)
    assert not accelerator.enabled
    assert len(accelerator.notes) == 1
    assert "no C++ compiler" in accelerator.notes[0]
    part = CompiledModule("denoiser", Double())
    part(torch.ones(1, 2))
    accelerator.poll([part])
    assert accelerator.state == "eager"


def test_a_run_that_is_off_and_a_build_that_fails_leave_the_part_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.compile.accelerator.missing_requirement", lambda *_: "")
    model = load(str(save_sd(tmp_path / "model", tiny=True)), CPU, torch.float32)
    decoder = model.codec.decoder
    latents = torch.randn(1, 4, 8, 8)
    expected = model.decode(latents)
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    for answer, told in (
        (lambda tensors: tensors[0] * 0 + 0.3, "its output is off by"),
        (None, "the compiler ended|no such|cannot"),
    ):
        decoder.rejected.clear()
        decoder.requested = signature_of(tree_flatten(((latents,), {}), []), [latents])
        if answer is None:
            monkeypatch.undo()
            monkeypatch.setattr(accelerator, "_folder", Path("/proc/none"))
        else:
            monkeypatch.setattr(accelerator, "_found", lambda *_, answer=answer: Backend(answer))
        accelerator.compile_all(lambda: [decoder])
        assert not decoder.backends
        assert len(accelerator.notes) == 2, "why, and how it ended"
        assert told.split("|")[0] in accelerator.notes[0] or "goes on as it is" in accelerator.notes[0]
        accelerator.notes.clear()
    assert torch.equal(model.decode(latents), expected)


@compiler
def test_a_compiled_model_equals_the_module_and_follows_its_weights(tmp_path: Path, cache: Path) -> None:
    folder = save_sd(tmp_path / "model")
    model = load(str(folder), CPU, torch.float32)
    condition = model.encode_prompt("green spiral")
    accelerator = Accelerator("compile", CPU, cache / "compiled")

    def both(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, t = torch.randn(rows, 4, 8, 8), torch.full((rows,), 400.0)
        with torch.inference_mode():
            fast = model.denoise(x, t, condition)
            runs, model.architecture.compiled_denoiser.backends = model.architecture.compiled_denoiser.backends, {}
            plain = model.denoise(x, t, condition)
            model.architecture.compiled_denoiser.backends = runs
        return fast, plain

    both(2)
    accelerator.compile_all(lambda: [model.architecture.compiled_denoiser])
    assert accelerator.state == "compiled", accelerator.notes
    assert [type(run.call) for run in model.architecture.compiled_denoiser.backends.values()] == [CompiledArtifact]
    for rows in (1, 2, 5):
        fast, plain = both(rows)
        assert not torch.equal(fast, plain), "it is not the module itself"
        assert float((fast - plain).square().mean().sqrt() / plain.square().mean().sqrt()) < TOLERANCE[torch.float32]

    before = both(1)[0]
    run = next(iter(model.architecture.compiled_denoiser.backends.values())).call
    assert isinstance(run, CompiledArtifact)
    t = torch.full((1,), 400.0)
    with torch.inference_mode():
        given = condition.rows(1)
        counts = []
        for _ in range(3):
            model.denoise(torch.randn(1, 4, 8, 8), t, given)
            counts.append(run.computed)
    assert counts == [counts[0]] * 3, "what follows from prompt and timesteps is computed once"
    loras = Loras({"unet": model.denoiser}, model.architecture.compiled_denoiser.mark_weights_changed)
    loras.install(
        [
            read(
                save_lora(tmp_path / "l.safetensors", {"unet": model.denoiser}),
                "StableDiffusionLoraLoaderMixin",
                loras._targets,
            )
        ]
    )
    loras.weigh([1.0])
    fast, plain = both(1)
    assert float((fast - before).abs().max()) > 1e-3, "a LoRA shows"
    assert float((fast - plain).abs().max()) < 1e-3
    loras.weigh([0.0])
    with torch.inference_mode():
        model.denoiser.conv_in.weight.mul_(1.5)
    model.architecture.compiled_denoiser.mark_weights_changed()
    fast, plain = both(1)
    assert float((plain - before).abs().max()) > 1e-2, "a convolution's weights are others"
    assert float((fast - plain).abs().max()) < 1e-3, "and what was laid out of them is too"
    with torch.inference_mode():
        model.denoiser.conv_in.weight.div_(1.5)
    model.architecture.compiled_denoiser.mark_weights_changed()

    # Another model of the same make, with other weights, is served from the cache.
    files = sorted((cache / "compiled").glob("*.json"))
    assert len(files) == 1
    made_at = files[0].stat().st_mtime_ns
    other = load(str(folder), CPU, torch.float32)
    with torch.inference_mode():
        other.denoiser.conv_out.weight.mul_(3.0)
        other.denoise(torch.randn(2, 4, 8, 8), torch.full((2,), 400.0), condition)
        accelerator.compile_all(lambda: [other.architecture.compiled_denoiser])
        assert other.architecture.compiled_denoiser.backends
    assert [file.stat().st_mtime_ns for file in files] == [made_at]
    damaged = shutil.copytree(cache / "compiled", tmp_path / "damaged") / files[0].name
    damaged.with_suffix(".pt2").write_bytes(damaged.with_suffix(".pt2").read_bytes()[:1000])
    assert accelerator._kept(damaged, other.architecture.compiled_denoiser) is None, "damaged: to be built again"
    assert not list((tmp_path / "damaged").iterdir())


@compiler
@thorough
def test_a_compiled_rendering_is_repeatable(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sd(tmp_path / "model", tiny=True)
    monkeypatch.setenv("PHOSPHENE_CACHE", str(cache))
    snapshot, threads = (
        Snapshot({"/model": str(tmp_path / "model"), "/size": "64x64", "/dtype": "float32"}),
        torch.get_num_threads(),
    )
    before = set(cache.rglob("*.json"))
    plain, *fast = (
        np.stack([frame.pixels for frame in render(frames(4), snapshot, EngineOptions("cpu", accelerate=kind))])
        for kind in ("auto", "compile", "compile")
    )
    assert torch.get_num_threads() == threads, "the core that the compiler had is given back"
    assert np.array_equal(*fast)
    assert np.abs(plain.astype(int) - fast[0]).max() <= 2
    assert len(set(cache.rglob("*.json")) - before) == 3, "denoiser, encoder and decoder"


@compiler
def test_the_builder_is_started_ahead_where_nothing_was_ever_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = CompiledModule("denoiser", Double())
    accelerator = Accelerator("compile", CPU, tmp_path)
    threads = torch.get_num_threads()
    accelerator.start_builder_early()
    builder = accelerator._builder
    assert builder is not None
    accelerator.poll([part])
    assert accelerator._builder is builder, "nothing is wanted yet"
    assert torch.get_num_threads() == max(1, threads - 1)
    builder.kill()
    builder.wait()
    accelerator.start_builder_early()
    assert accelerator._builder not in (None, builder), "another, where it died"
    builder = accelerator._builder
    assert builder is not None
    monkeypatch.setattr(accelerator, "_wait_until", 0.0)
    accelerator.poll([part])
    assert accelerator._builder is None, "nothing was wanted for long"
    assert builder.poll() is not None
    assert torch.get_num_threads() == threads
    (tmp_path / "one.json").touch()
    accelerator.start_builder_early()
    assert accelerator._builder is None, "what is needed may be there"


def test_a_builder_ends_with_who_asked() -> None:
    builder = subprocess.Popen([sys.executable, "-m", "engine.compile.builder"], stdin=subprocess.PIPE)
    assert builder.stdin is not None
    builder.stdin.close()
    assert builder.wait(60) == 0


@compiler
@thorough
def test_a_compiled_control_steers_a_compiled_denoiser(tmp_path: Path) -> None:
    model = load(str(save_sd(tmp_path / "model")), CPU, torch.float32)
    save_controlnet(tmp_path / "control", model.denoiser)
    values = {
        "/control/1": str(tmp_path / "control"),
        "/control/1/from": "input",
        "/guidance/mode": "none",
        "/steps": 1,
    }
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot(values), wait=True)
    frame = next(iter(frames(1)))
    plain = stream.step([frame])
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    parts = [model.architecture.compiled_denoiser, *stream.adapters.parts]
    accelerator.compile_all(lambda: parts)
    assert [len(part.backends) for part in parts] == [1, 1], accelerator.notes
    fast = stream.step([frame])
    assert plain
    assert fast
    assert np.abs(plain[0].pixels.astype(int) - fast[0].pixels).max() <= 2
    # Another weight and another picture need no other build.
    stream.apply(Snapshot(values | {"/control/1/weight": 0.3}), wait=True)
    weaker = stream.step([frame])
    assert weaker
    assert model.architecture.compiled_denoiser.requested is None
    assert np.abs(fast[0].pixels.astype(int) - weaker[0].pixels).max() > 2
    stream.close()


GRAPHS = {"sdxl": save_sdxl} | {name: save for name, save in FLOWS.items() if not name.startswith("lumina")}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_of_every_family_equals_its_module(name: str, tmp_path: Path) -> None:
    """What would be compiled, run as it is: made of the configuration alone, then given the weights."""
    model = load(str(GRAPHS[name](tmp_path)), CPU, torch.float32)
    side = 128 if name == "sana" else 64
    stream = Stream(model, side, side)
    stream.apply(Snapshot({"/steps": 2}), wait=True)
    for frame in (Frame(np.full((side, side, 4), 90, np.uint8), i) for i in range(2)):
        stream.step([frame])
    stream.close()
    for part in model.compiled_modules:
        assert part.requested is not None
        made = exported(json.loads(json.dumps(recipe(part.name, part.module, part.requested, model.dtype, CPU, 2))))
        assert (made.steady is not None) == (part.name == "denoiser")
        graph = made.program().module()
        state = {
            f"module.{key}": tensor for key, tensor in (*part.module.named_parameters(), *part.module.named_buffers())
        }
        # An encoder's graph also carries its autoencoder's decoder, unused and without its doublings fused.
        own = {
            key: state[key]
            for key, tensor in graph.state_dict().items()
            if key in state and state[key].shape == tensor.shape
        }
        graph.load_state_dict(own, strict=False)
        for rows in (1, 2, 5):
            tensors = example_inputs(part.requested, rows, CPU)
            arguments, options = tree_unflatten(part.requested.structure, iter(tensors))
            changing = dynamic_inputs(part.requested.tensors)
            with torch.inference_mode():
                expected = part.module(*arguments, **options)
                if made.steady is not None:
                    run = FxSource(write_source(made.steady), state | constants(made.steady))
                    tensors = [
                        *(tensors[i] for i in changing),
                        *run(*(tensor for i, tensor in enumerate(tensors) if i not in changing)),
                    ]
                found = tree_unflatten(made.form, iter(graph(*tensors)))
            expected, found = (value if isinstance(value, torch.Tensor) else value[0] for value in (expected, found))
            assert expected.std() > 1e-4
            assert torch.allclose(found, expected, atol=1e-4, rtol=1e-3), part.name


@pytest.mark.parametrize("name", ["lumina", "lumina2"])
def test_a_family_that_cannot_be_compiled_goes_on_as_it_is(name: str, tmp_path: Path) -> None:
    model = load(str(FLOWS[name](tmp_path / "model")), CPU, torch.float32)
    stream = Stream(model, 64, 64)
    frame = Frame(np.full((64, 64, 4), 90, np.uint8))
    plain = stream.step([frame])
    accelerator = Accelerator("compile", CPU, tmp_path / "cache")
    accelerator.enabled = True  # with or without a compiler here: it does not come to that
    accelerator.compile_all(lambda: [model.architecture.compiled_denoiser])
    assert accelerator.state == "eager"
    assert sum("the denoiser is not compiled and goes on as it is" in note for note in accelerator.notes) == 1
    stream.restart()
    again = stream.step([frame])
    assert (plain is None) == (again is None)
    assert model.architecture.compiled_denoiser.requested is None
    stream.close()
