"""The graphs that TensorRT is given, run by onnxruntime in its place; and what surrounds it, up to the calls that only it can answer."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from engine.compile import Accelerator, tensorrt
from engine.compile.builder import exported, recipe
from engine.compile.dispatch import Backend, CompiledModule, example_inputs, tree_unflatten
from engine.compile.fx_source import FxSource, constants, write_source
from engine.compile.partition import dynamic_inputs
from engine.diffusion.stream import Stream
from engine.models import POCKET, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet
from tests.engine.checkpoints import save_sd, save_sdxl
from tests.engine.flows import FLOWS
from tests.waiting import thorough

CPU = torch.device("cpu")


def wanted(folder: str, side: int, values: dict[str, Any] | None = None) -> tuple[dict[str, CompiledModule], Stream]:
    """The parts of a model that a stream of ``side`` has called, under their names."""
    model = load(folder, CPU, torch.float32)
    stream = Stream(model, side, side)
    stream.apply(Snapshot({"/steps": 2, "/guidance/mode": "none"} | (values or {})), wait=True)
    for i in range(2):
        stream.step([Frame(np.full((side, side, 4), 90, np.uint8), i)])
    return {part.name: part for part in (*model.compiled_modules, *stream.adapters.parts)}, stream


class Runtime:
    """onnxruntime on a part's exported graph, its weights put in by their names, as a TensorRT engine is refitted."""

    def __init__(self, part: CompiledModule, path: Path) -> None:
        assert part.requested is not None
        self.part, self.changing = part, dynamic_inputs(part.requested.tensors)
        self.made = exported(
            json.loads(json.dumps(recipe(part.name, part.module, part.requested, torch.float32, CPU, 2))), any_size=True
        )
        tensorrt.write_onnx(self.made.program(), path)
        graph = onnx.load(str(path))
        weights: dict[str, torch.Tensor] = {
            f"module.{name}": value for name, value in (*part.module.named_parameters(), *part.module.named_buffers())
        }
        self.named = 0
        for initializer in graph.graph.initializer:
            if initializer.name in weights and list(initializer.dims) == list(weights[initializer.name].shape):
                initializer.CopyFrom(numpy_helper.from_array(weights[initializer.name].numpy(), initializer.name))
                self.named += 1
        onnx.save(graph, str(path), save_as_external_data=False)
        self.session = onnxruntime.InferenceSession(str(path))
        steady = self.made.steady
        self.steady = FxSource(write_source(steady), weights | constants(steady)) if steady else None

    def __call__(self, tensors: list[torch.Tensor]) -> list[np.ndarray]:
        if self.steady is not None:
            given = self.steady(*(tensor for i, tensor in enumerate(tensors) if i not in self.changing))
            tensors = [*(tensors[i] for i in self.changing), *given]
        names = [given.name for given in self.session.get_inputs()]
        return self.session.run(
            None, {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        )


def check(part: CompiledModule, other: CompiledModule, path: Path) -> Runtime:
    """Equality of the module and its graph at the size of ``part`` and at that of ``other``, two batches each."""
    runtime = Runtime(part, path)
    assert runtime.named > 5
    for at in (part, other):
        assert at.requested is not None
        for rows in (1, 4):
            tensors = example_inputs(at.requested, rows, CPU)
            arguments, options = tree_unflatten(at.requested.structure, iter(tensors))
            with torch.inference_mode():
                expected = part.module(*arguments, **options)
                found = runtime(tensors)
            flat = [expected] if isinstance(expected, torch.Tensor) else list(expected)
            flat = [tensor for one in flat for tensor in ([one] if isinstance(one, torch.Tensor) else one)]
            assert len(found) == len(flat)
            for one, two in zip(flat, found, strict=True):
                assert one.std() > 1e-4
                assert np.allclose(two, one.numpy(), atol=1e-4, rtol=1e-3), part.name
    return runtime


@pytest.mark.parametrize(("model", "names"), [("pocket", ("encoder", "decoder")), ("sdxl", ("encoder", "decoder"))])
def test_an_exported_model_equals_its_modules_at_every_size_and_batch(
    model: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    folder = POCKET if model == "pocket" else save_sdxl(tmp_path / "model")
    parts, stream = wanted(str(folder), 64)
    others, beside = wanted(str(folder), 96)
    for name in names:
        part = parts[name]
        runtime = check(part, others[name], tmp_path / f"{name}.onnx")
        first = runtime.session.get_inputs()[0].shape
        assert [isinstance(size, str) for size in first] == [True, False, True, True], "batch and sides are open"
    stream.close()
    beside.close()


@thorough
def test_an_exported_control_and_what_it_steers_equal_their_modules(tmp_path: Path) -> None:
    folder = save_sd(tmp_path / "model")
    save_controlnet(tmp_path / "control", load(str(folder), CPU, torch.float32).denoiser)
    values = {"/control/1": str(tmp_path / "control"), "/control/1/from": "input"}
    parts, stream = wanted(str(folder), 64, values)
    others, beside = wanted(str(folder), 128, values)
    assert parts["denoiser"].requested is not None
    assert len(parts["denoiser"].requested.tensors) > 6, "what the control adds is among its inputs"
    for name in ("control", "denoiser"):
        check(parts[name], others[name], tmp_path / f"{name}.onnx")
    stream.close()
    beside.close()


def test_an_exported_transformer_equals_its_module_at_every_batch(tmp_path: Path) -> None:
    parts, stream = wanted(str(FLOWS["flux"](tmp_path / "model")), 64)
    check(parts["denoiser"], parts["denoiser"], tmp_path / "denoiser.onnx")
    stream.close()


def test_an_engine_serves_an_octave_of_sizes() -> None:
    assert [tensorrt.span(side) for side in (64, 80, 127, 128)] == [(64, 128), (64, 128), (64, 128), (128, 256)]
    call = [("float16", (4, 64, 80), True), ("float32", (), True), ("float16", (77, 768), True)]
    assert tensorrt.spans(call) == tensorrt.spans([("float16", (4, 72, 120), True), *call[1:]])
    assert tensorrt.spans(call) != tensorrt.spans([("float16", (4, 72, 130), True), *call[1:]])
    least, usual, most = tensorrt.limits((-1, 4, -1, -1), (4, 64, 80))
    assert (least, usual, most) == ([1, 4, 64, 64], [4, 4, 64, 80], [16, 4, 128, 128])
    assert tensorrt.limits((-1, 77, 768), ()) == ([1, 77, 768], [4, 77, 768], [16, 77, 768])


def test_without_what_it_needs_the_stream_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator("tensorrt", CPU)
    assert not accelerator.enabled
    assert accelerator.notes == ["not accelerated: TensorRT needs an NVIDIA GPU; --accelerate compile works without"]
    monkeypatch.setattr(
        tensorrt, "find_spec", lambda name: None if name == "tensorrt" else ModuleSpec(name, None, origin=name)
    )
    assert (
        tensorrt.missing_requirement(torch.device("cuda"))
        == "tensorrt is not installed; pip install 'phosphene[tensorrt]'"
    )


def test_what_holds_other_weights_than_the_module_has_now_is_not_run() -> None:
    part = CompiledModule("denoiser", torch.nn.Linear(2, 2))
    x = torch.ones(3, 2)
    expected = part(x)
    shape = part.requested
    assert shape is not None
    part.backends[shape] = Backend(lambda tensors: tensors[0] * 7, max_rows=4, version=part.version)
    assert torch.equal(part(x), 7 * x)
    assert part(torch.ones(5, 2)).shape == (5, 2), "more rows than it takes are the module's"
    assert torch.equal(part(x), 7 * x)
    part.mark_weights_changed()
    assert torch.equal(part(x), expected)
    assert part.requested == shape, "and it is asked for anew"
