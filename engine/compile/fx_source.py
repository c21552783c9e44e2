"""A graph as Python source, to be kept in a file and run without the compiler.

That is as fast where convolutions do nearly everything, and ready in a second or two: a compiler gains by what it fuses between them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.graph import CodeGen

#: Share of all written elements that others than convolutions may write where the compiler is not asked.
FEW = 0.2
#: What the compiler would write all the same: a convolution takes its input as one whole.
_JOINED = "aten::cat"
_CONVOLUTIONS = {"aten::conv2d", "aten::conv_transpose2d", "mkldnn::_convolution_pointwise"}


def write_source(graph: fx.GraphModule) -> dict[str, Any]:
    """``graph`` as ``code`` of a function ``forward(self, …)``, and the ``names`` of the tensors that this calls held_0 and so on."""
    plain = copy.deepcopy(graph.graph)
    plain.set_codegen(CodeGen())
    places: dict[str, str] = {}
    for node in plain.nodes:
        if node.op == "get_attr":
            node.target = places.setdefault(str(node.target), f"held_{len(places)}")
    return {"code": plain.python_code("self").src, "names": list(places)}


class FxSource:
    """The function of ``written`` on ``tensors`` by their names; ``renew`` takes others for some of them."""

    def __init__(self, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        globals_: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
        exec(told["code"], globals_)
        self._forward: Callable[..., Any] = globals_["forward"]
        self._places = {name: f"held_{i}" for i, name in enumerate(told["names"])}
        self._held = SimpleNamespace()
        self.renew({name: tensors[name] for name in self._places})

    def renew(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            setattr(self._held, self._places[name], tensor)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return list(self._forward(self._held, *inputs))


def constants(graph: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that ``graph`` takes and that are no weights of its module's: those have a dot in their names."""
    targets = (node.target for node in graph.graph.nodes if node.op == "get_attr" and "." not in node.target)
    return {target: value for target in targets if isinstance(value := getattr(graph, target), Tensor)}


def _views(schema: Any) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)


def is_mostly_convolutions(graph: fx.GraphModule) -> bool:
    """Whether convolutions write nearly all that ``graph`` writes."""
    by_convolutions = by_others = 0
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and isinstance(value := node.meta.get("val"), Tensor):
            schema = node.target._schema
            elements = math.prod(size if isinstance(size, int) else 1 for size in value.shape)  # beside the open batch
            if schema.name in _CONVOLUTIONS:
                by_convolutions += elements
            elif schema.name != _JOINED and not _views(schema):
                by_others += elements
    return by_others < FEW * (by_others + by_convolutions)
