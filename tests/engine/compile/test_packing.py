"""Packed weights: layers give the same results, with the operations after them fused into the call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from engine.compile.packing import PackedWeights, is_available, pack

pytestmark = pytest.mark.skipif(not is_available(), reason="packing is for x86")


class Block(nn.Module):
    """Two convolutions and the operations after them, which ``way`` selects."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "two convolutions":
            return (self.first(x) + self.second(x)).relu()
        inner = self.first(x).relu()
        if self.way == "residual":
            return (self.second(inner) + x).relu()
        if self.way == "residual first":
            return x + self.second(inner)
        if self.way == "broadcast":
            return (self.second(inner) + self.scale).relu()
        if self.way == "used twice":
            after = self.second(inner)
            return after.relu() + after
        if self.way == "scaled sum":
            return torch.add(self.second(inner), x, alpha=0.5)
        return self.second(inner) * 2


#: Number of calls with a fused addition, of calls without, and of ReLUs that are not fused.
EXPECTED = {
    "residual": (1, 1, 0),
    "residual first": (1, 1, 0),
    "two convolutions": (1, 1, 0),
    "broadcast": (0, 2, 1),
    "used twice": (0, 2, 1),
    "scaled sum": (0, 2, 0),
    "neither": (0, 2, 0),
}


@pytest.mark.parametrize("way", EXPECTED)
def test_a_packed_graph_equals_its_module(way: str) -> None:
    torch.manual_seed(0)
    block = Block(way).eval()
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = block(x)
        exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
        graph = exported.module(check_guards=False)
        packings = pack(graph)
        actual = graph(x)
    assert torch.allclose(actual, expected, atol=1e-5)
    pointwise = torch.ops.mkldnn._convolution_pointwise
    calls = Counter(node.target for node in graph.graph.nodes)
    with_addition, without, relus = EXPECTED[way]
    assert (calls[pointwise.binary], calls[pointwise.default], calls[torch.ops.aten.relu.default]) == (
        with_addition,
        without,
        relus,
    )
    order = ["second", "first"] if way == "two convolutions" else ["first", "second"]  # the sum comes last
    assert [packing["weight"] for packing in packings.values()] == [f"{name}.weight" for name in order]


@pytest.mark.parametrize(("outputs", "is_packed"), [(32, True), (31, False)])
def test_wide_linear_layers_are_packed_and_follow_their_weights(outputs: int, is_packed: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, outputs, bias=False), nn.GELU()).eval().requires_grad_(False)
    x = torch.randn(2, 5, 8)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    graph = exported.module(check_guards=False)
    packings = pack(graph)
    assert [packing["kind"] for packing in packings.values()] == ["linear"] * is_packed
    check_follows_weight(graph, packings, module, "0.weight", x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_packed_in_a_precision_without_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    module = (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 32, bias=False))
        .to(dtype)
        .eval()
        .requires_grad_(False)
    )
    graph = torch.export.export(module, (torch.randn(2, 4, 8, 8, dtype=dtype),)).module(check_guards=False)
    assert pack(graph) == {}


def check_follows_weight(
    graph: fx.GraphModule, packings: dict[str, dict[str, Any]], module: nn.Module, name: str, x: Tensor
) -> None:
    """Assert that graph and module agree, also after a weight was changed in place and packed again."""
    assert torch.allclose(graph(x), module(x), atol=1e-5)
    weight = module.get_parameter(name)
    packed = PackedWeights(packings, {name: weight})
    assert not packed.repack_changed()
    weight.mul_(2.0)
    for packed_name, tensor in packed.repack_changed().items():
        setattr(graph, packed_name, tensor)
    assert torch.allclose(graph(x), module(x), atol=1e-5)


class Upsampling(nn.Module):
    """Nearest-neighbour upsampling by ``factor``, then a convolution with a kernel of ``side``."""

    def __init__(self, factor: int, side: int) -> None:
        super().__init__()
        self.factor, self.convolution = factor, nn.Conv2d(4, 6, side, padding=side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(interpolate(x, scale_factor=float(self.factor), mode="nearest")).relu()


@pytest.mark.parametrize(("factor", "side", "is_fused"), [(2, 3, True), (2, 1, False), (2, 5, False), (3, 3, False)])
def test_upsampling_and_a_convolution_are_fused_and_follow_their_weight(factor: int, side: int, is_fused: bool) -> None:
    torch.manual_seed(0)
    module = Upsampling(factor, side).eval().requires_grad_(False)
    x = torch.randn(2, 4, 8, 6).to(memory_format=torch.channels_last)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    graph = exported.module(check_guards=False)
    packings = pack(graph)
    targets = {node.target for node in graph.graph.nodes}
    assert (torch.ops.aten.conv_transpose2d.input in targets) is is_fused
    assert (torch.ops.aten.upsample_nearest2d.vec in targets) is not is_fused
    check_follows_weight(graph, packings, module, "convolution.weight", x)
