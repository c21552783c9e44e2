"""TensorRT: the exported graphs, run by onnxruntime, and everything up to the calls that need its libraries."""

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
from engine.compile.builder import export, make_recipe
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


def request_backends(
    folder: str, side: int, values: dict[str, Any] | None = None
) -> tuple[dict[str, CompiledModule], Stream]:
    """Return the components that a stream of ``side`` calls, by name, and the stream."""
    model = load(folder, CPU, torch.float32)
    stream = Stream(model, side, side)
    stream.apply(Snapshot({"/steps": 2, "/guidance/mode": "none"} | (values or {})))
    stream.settle()
    for i in range(2):
        stream.step([Frame(np.full((side, side, 4), 90, np.uint8), i)])
    return {one.name: one for one in (*model.compiled_modules, *stream.adapters.compiled_modules)}, stream


class OnnxRunner:
    """A component's exported graph in onnxruntime, its weights set by name, as a TensorRT engine is refitted."""

    def __init__(self, component: CompiledModule, path: Path) -> None:
        assert component.requested is not None
        module, signature = component.module, component.requested
        self.dynamic = dynamic_inputs(signature.tensors)
        recipe = make_recipe(component.name, module, signature, torch.float32, CPU, 2)
        exported = export(json.loads(json.dumps(recipe)), any_size=True)
        tensorrt.write_onnx(exported.program(), path)
        graph = onnx.load(str(path))
        weights: dict[str, torch.Tensor] = {
            f"module.{name}": value for name, value in (*module.named_parameters(), *module.named_buffers())
        }
        self.weights_set = 0
        for initializer in graph.graph.initializer:
            if initializer.name in weights and list(initializer.dims) == list(weights[initializer.name].shape):
                initializer.CopyFrom(numpy_helper.from_array(weights[initializer.name].numpy(), initializer.name))
                self.weights_set += 1
        onnx.save(graph, str(path), save_as_external_data=False)
        self.session = onnxruntime.InferenceSession(str(path))
        static = exported.static
        self.static = FxSource(write_source(static), weights | constants(static)) if static else None

    def __call__(self, tensors: list[torch.Tensor]) -> list[np.ndarray]:
        if self.static is not None:
            results = self.static(*(tensor for i, tensor in enumerate(tensors) if i not in self.dynamic))
            tensors = [*(tensors[i] for i in self.dynamic), *results]
        names = [argument.name for argument in self.session.get_inputs()]
        return self.session.run(
            None, {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        )


def check(component: CompiledModule, other: CompiledModule, path: Path) -> OnnxRunner:
    """Assert that module and graph agree at the sizes of ``component`` and ``other``, with two batches each."""
    runner = OnnxRunner(component, path)
    assert runner.weights_set > 5
    for signature in (component.requested, other.requested):
        assert signature is not None
        for rows in (1, 4):
            tensors = example_inputs(signature, rows, CPU)
            arguments, options = tree_unflatten(signature.structure, iter(tensors))
            with torch.inference_mode():
                expected = component.module(*arguments, **options)
                outputs = runner(tensors)
            flat = [expected] if isinstance(expected, torch.Tensor) else list(expected)
            flat = [tensor for one in flat for tensor in ([one] if isinstance(one, torch.Tensor) else one)]
            assert len(outputs) == len(flat)
            for one, two in zip(flat, outputs, strict=True):
                assert one.std() > 1e-4
                assert np.allclose(two, one.numpy(), atol=1e-4, rtol=1e-3), component.name
    return runner


@pytest.mark.parametrize(("model", "names"), [("pocket", ("encoder", "decoder")), ("sdxl", ("encoder", "decoder"))])
def test_an_exported_model_equals_its_modules_at_every_size_and_batch(
    model: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    folder = POCKET if model == "pocket" else save_sdxl(tmp_path / "model")
    components, stream = request_backends(str(folder), 64)
    others, other_stream = request_backends(str(folder), 96)
    for name in names:
        runner = check(components[name], others[name], tmp_path / f"{name}.onnx")
        first = runner.session.get_inputs()[0].shape
        assert [isinstance(size, str) for size in first] == [True, False, True, True], "batch and sides are open"
    stream.close()
    other_stream.close()


@thorough
def test_an_exported_controlnet_and_its_denoiser_equal_their_modules(tmp_path: Path) -> None:
    folder = save_sd(tmp_path / "model")
    save_controlnet(tmp_path / "control", load(str(folder), CPU, torch.float32).denoiser)
    values = {"/control/1": str(tmp_path / "control"), "/control/1/from": "input"}
    components, stream = request_backends(str(folder), 64, values)
    others, other_stream = request_backends(str(folder), 128, values)
    assert components["denoiser"].requested is not None
    assert len(components["denoiser"].requested.tensors) > 6, "the ControlNet's residuals are among its inputs"
    for name in ("control", "denoiser"):
        check(components[name], others[name], tmp_path / f"{name}.onnx")
    stream.close()
    other_stream.close()


def test_an_exported_transformer_equals_its_module_at_every_batch(tmp_path: Path) -> None:
    components, stream = request_backends(str(FLOWS["flux"](tmp_path / "model")), 64)
    check(components["denoiser"], components["denoiser"], tmp_path / "denoiser.onnx")
    stream.close()


def test_an_engine_serves_an_octave_of_sizes() -> None:
    assert [tensorrt.size_octave(side) for side in (64, 80, 127, 128)] == [(64, 128), (64, 128), (64, 128), (128, 256)]
    call = [("float16", (4, 64, 80), True), ("float32", (), True), ("float16", (77, 768), True)]
    assert tensorrt.widen_sizes(call) == tensorrt.widen_sizes([("float16", (4, 72, 120), True), *call[1:]])
    assert tensorrt.widen_sizes(call) != tensorrt.widen_sizes([("float16", (4, 72, 130), True), *call[1:]])
    smallest, typical, largest = tensorrt.profile_limits((-1, 4, -1, -1), (4, 64, 80))
    assert (smallest, typical, largest) == ([1, 4, 64, 64], [4, 4, 64, 80], [16, 4, 128, 128])
    assert tensorrt.profile_limits((-1, 77, 768), ()) == ([1, 77, 768], [4, 77, 768], [16, 77, 768])


def test_a_missing_requirement_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_backend_with_outdated_weights_is_not_run() -> None:
    component = CompiledModule("denoiser", torch.nn.Linear(2, 2))
    x = torch.ones(3, 2)
    expected = component(x)
    signature = component.requested
    assert signature is not None
    component.backends[signature] = Backend(lambda tensors: tensors[0] * 7, max_rows=4, version=component.version)
    assert torch.equal(component(x), 7 * x)
    assert component(torch.ones(5, 2)).shape == (5, 2), "a batch above max_rows runs the module"
    assert torch.equal(component(x), 7 * x)
    component.mark_weights_changed()
    assert torch.equal(component(x), expected)
    assert component.requested == signature, "it is requested again"
