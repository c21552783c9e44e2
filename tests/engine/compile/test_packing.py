"""Convolutions on packed weights give what they gave, with what follows them done in the same call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from engine.compile.packing import Packed, available, pack

pytestmark = pytest.mark.skipif(not available(), reason="packing is for x86")


class Block(nn.Module):
    """A convolution and what comes after it, by its name."""

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
        if self.way == "the other way round":
            return x + self.second(inner)
        if self.way == "spread out":
            return (self.second(inner) + self.scale).relu()
        if self.way == "used twice":
            after = self.second(inner)
            return after.relu() + after
        if self.way == "a share":
            return torch.add(self.second(inner), x, alpha=0.5)
        return self.second(inner) * 2


#: How many calls with an addition, how many without, and how many ReLUs stay by themselves.
EXPECTED = {
    "residual": (1, 1, 0),
    "the other way round": (1, 1, 0),
    "two convolutions": (1, 1, 0),
    "spread out": (0, 2, 1),
    "used twice": (0, 2, 1),
    "a share": (0, 2, 0),
    "neither": (0, 2, 0),
}


@pytest.mark.parametrize("way", EXPECTED)
def test_a_packed_graph_gives_what_the_module_gives(way: str) -> None:
    torch.manual_seed(0)
    block = Block(way).eval()
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = block(x)
        exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
        graph = exported.module(check_guards=False)
        packings = pack(graph)
        found = graph(x)
    assert torch.allclose(found, expected, atol=1e-5)
    pointwise = torch.ops.mkldnn._convolution_pointwise
    calls = Counter(node.target for node in graph.graph.nodes)
    with_addition, without, relus = EXPECTED[way]
    assert (calls[pointwise.binary], calls[pointwise.default], calls[torch.ops.aten.relu.default]) == (
        with_addition,
        without,
        relus,
    )
    order = ["second", "first"] if way == "two convolutions" else ["first", "second"]  # the sum is made last
    assert [packing["source"] for packing in packings.values()] == [f"{name}.weight" for name in order]


@pytest.mark.parametrize(("outputs", "packed"), [(32, True), (31, False)])
def test_wide_linear_layers_are_packed_and_follow_their_weights(outputs: int, packed: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, outputs, bias=False), nn.GELU()).eval().requires_grad_(False)
    x = torch.randn(2, 5, 8)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    graph = exported.module(check_guards=False)
    packings = pack(graph)
    assert [packing["kind"] for packing in packings.values()] == ["linear"] * packed
    follows(graph, packings, module, "0.weight", x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_precision_that_the_processor_lacks_is_left_as_it_is(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def follows(
    graph: fx.GraphModule, packings: dict[str, dict[str, Any]], module: nn.Module, source: str, x: Tensor
) -> None:
    """The graph gives what the module gives, also once a weight was changed in place and packed again."""
    assert torch.allclose(graph(x), module(x), atol=1e-5)
    weight = module.get_parameter(source)
    packed = Packed(packings, {source: weight})
    assert not packed.renewed()
    weight.mul_(2.0)
    for name, renewed in packed.renewed().items():
        setattr(graph, name, renewed)
    assert torch.allclose(graph(x), module(x), atol=1e-5)


class Doubling(nn.Module):
    """A picture grown ``factor`` times by repeating its pixels, and convolved with a kernel of ``side``."""

    def __init__(self, factor: int, side: int) -> None:
        super().__init__()
        self.factor, self.convolution = factor, nn.Conv2d(4, 6, side, padding=side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(interpolate(x, scale_factor=float(self.factor), mode="nearest")).relu()


@pytest.mark.parametrize(("factor", "side", "one"), [(2, 3, True), (2, 1, False), (2, 5, False), (3, 3, False)])
def test_a_doubling_and_a_convolution_are_one_that_follows_its_weight(factor: int, side: int, one: bool) -> None:
    torch.manual_seed(0)
    module = Doubling(factor, side).eval().requires_grad_(False)
    x = torch.randn(2, 4, 8, 6).to(memory_format=torch.channels_last)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    graph = exported.module(check_guards=False)
    packings = pack(graph)
    targets = {node.target for node in graph.graph.nodes}
    assert (torch.ops.aten.conv_transpose2d.input in targets) is one
    assert (torch.ops.aten.upsample_nearest2d.vec in targets) is not one
    follows(graph, packings, module, "convolution.weight", x)
