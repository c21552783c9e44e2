"""The calls to TensorRT, against a stand-in with its names: memory of a call, refits of what changed, fewer rows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from engine.compile import tensorrt
from engine.compile.dispatch import Backend, BackendUnusable, CompiledModule, RowCounts, TensorSpec
from engine.compile.dispatch import CallSignature as Signature
from engine.compile.jobs import find_uncompiled
from engine.compile.tensorrt import TensorRTEngine
from tests.engine.compile import tensorrt_stand_in

STREAM = 7


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = tensorrt_stand_in.stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=STREAM))
    return module


@pytest.fixture
def loaded(trt: ModuleType, tmp_path: Path) -> tuple[TensorRTEngine, CompiledModule, tensorrt_stand_in.ICudaEngine]:
    (tmp_path / "model.plan").write_bytes(b"plan")
    component = CompiledModule("decoder", Affine())
    weights = {f"module.{name}": value for name, value in component.module.named_parameters()}
    engine = TensorRTEngine(tmp_path / "model.plan", weights, component)
    return engine, component, tensorrt_stand_in.Runtime.engines[0]


def test_a_call_has_memory_for_its_sizes_alone(
    loaded: tuple[TensorRTEngine, CompiledModule, tensorrt_stand_in.ICudaEngine],
) -> None:
    engine, component, inner = loaded
    for rows in (2, 2, 4, 2):
        x = torch.randn(rows, 3)
        assert torch.allclose(engine([x])[0], component.module(x))
    assert [entry for entry in inner.log if entry[0] == "size"] == [("size", (rows, 3)) for rows in (2, 4, 2)]
    assert [entry for entry in inner.log if entry[0] == "run"] == [("run", STREAM)] * 4
    assert len(inner.contexts) == 1


def test_a_changed_weight_is_refitted_without_another_engine(
    loaded: tuple[TensorRTEngine, CompiledModule, tensorrt_stand_in.ICudaEngine],
) -> None:
    engine, component, inner = loaded
    x = torch.randn(2, 3)
    engine([x])
    component.mark_weights_changed()
    engine([x])
    refits = [entry for entry in inner.log if entry[0] == "refit"]
    assert refits == [("refit", "module.scale", "module.shift")], "no weight has changed"
    with torch.inference_mode():
        component.module.shift.add_(1.0)  # type: ignore[operator, union-attr]
    component.mark_weights_changed()
    assert torch.allclose(engine([x])[0], component.module(x))
    refits = [entry for entry in inner.log if entry[0] == "refit"]
    assert refits[1:] == [("refit", STREAM, "module.scale", "module.shift")], "in the order of the stream's work"
    assert len(tensorrt_stand_in.Runtime.engines) == len(inner.contexts) == 1


def test_an_engine_that_cannot_be_refitted_gives_way_to_the_module(
    loaded: tuple[TensorRTEngine, CompiledModule, tensorrt_stand_in.ICudaEngine],
) -> None:
    engine, component, inner = loaded
    x = torch.randn(2, 3)
    component(x)
    signature = component.called
    assert signature is not None
    component.backends[signature] = Backend(lambda tensors: engine(tensors)[0])
    assert torch.allclose(component(x), component.module(x))
    with pytest.raises(BackendUnusable, match="size"):
        engine([torch.randn(tensorrt_stand_in.ROWS_LIMIT + 1, 3)])
    with torch.inference_mode():
        component.module.shift.add_(1.0)  # type: ignore[operator, union-attr]
    component.mark_weights_changed()
    inner.rejected.add("module.shift")
    assert torch.equal(component(x), component.module(x)), "the frame is not lost"
    assert not component.backends
    assert component.rejected == {signature}


def test_a_plan_that_is_none_is_reported(trt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="cannot read the engine"):
        TensorRTEngine(tmp_path / "model.plan", {}, CompiledModule("decoder", Affine()))


@pytest.mark.parametrize("has_resize", [True, False])
def test_an_engine_is_built_for_the_rows_in_use(
    has_resize: bool, trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "write_onnx", lambda _program, path: path.touch())
    if not has_resize:  # before 10.10
        monkeypatch.setattr(trt, "PreviewFeature", type("PreviewFeature", (), {}))
    signature = Signature((), (TensorSpec("float32", (3,), True),))
    tensorrt.build(None, signature, tmp_path / "model.plan", rows=2)
    [config] = tensorrt_stand_in.Builder.configs
    assert config.profiles[0].shapes == {"x": ((1, 3), (2, 3), (2, 3))}
    assert tensorrt_stand_in.BuilderFlag.REFIT in config.flags
    assert (len(config.flags) == 2) is has_resize
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.plan"]


def test_the_rows_of_an_engine_follow_the_steps_in_use() -> None:
    largest = {1: 2, 2: 2, 3: 4, 4: 4, 6: 8, 8: 8, 12: 16, 16: 16, 63: 16}
    assert {rows: tensorrt.max_rows(RowCounts((1,), rows)) for rows in largest} == largest
    component = CompiledModule("decoder", Affine())
    component(torch.randn(2, 3))
    signature = component.called
    assert signature is not None
    component.backends[signature] = Backend(lambda tensors: tensors, max_rows=4)
    component.requested = None
    assert find_uncompiled(component, RowCounts((1, 4), 8)) is None
    assert find_uncompiled(component, RowCounts((2, 6), 12)) == signature, "more steps: a larger engine is built"
    component.backends[signature] = Backend(lambda tensors: tensors, max_rows=16)
    assert find_uncompiled(component, RowCounts((8, 32), 32)) is None, "there is none for so many rows"
