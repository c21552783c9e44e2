"""FX graphs as Python source: saved to a file and run without the compiler.

That is as fast where convolutions do nearly all the work, and ready in a second or two. A compiler gains by fusing what
lies between convolutions.
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

#: Largest fraction of all output elements that other operators may produce in a graph that is run from source.
MAX_OTHER_FRACTION = 0.2
#: An operator that the compiler would execute all the same: a convolution reads its input as one tensor.
_CONCATENATION = "aten::cat"
_CONVOLUTIONS = {"aten::conv2d", "aten::conv_transpose2d", "mkldnn::_convolution_pointwise"}


def write_source(graph: fx.GraphModule) -> dict[str, Any]:
    """Return ``graph`` as ``code`` of ``forward(self, …)``, and the ``names`` of its tensor_0, tensor_1 and so on."""
    renamed = copy.deepcopy(graph.graph)
    renamed.set_codegen(CodeGen())
    attributes: dict[str, str] = {}
    for node in renamed.nodes:
        if node.op == "get_attr":
            node.target = attributes.setdefault(str(node.target), f"tensor_{len(attributes)}")
    return {"code": renamed.python_code("self").src, "names": list(attributes)}


class FxSource:
    """The function of a ``source`` from ``write_source``, with its tensors looked up by name in ``tensors``."""

    def __init__(self, source: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        globals_: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
        exec(source["code"], globals_)
        self._forward: Callable[..., Any] = globals_["forward"]
        self._attributes = {name: f"tensor_{i}" for i, name in enumerate(source["names"])}
        self._tensors = SimpleNamespace()
        self.update({name: tensors[name] for name in self._attributes})

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace some of the tensors, by name."""
        for name, tensor in tensors.items():
            setattr(self._tensors, self._attributes[name], tensor)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return list(self._forward(self._tensors, *inputs))


def constants(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return the tensors of ``graph`` that are not weights of its module; the names of weights contain a dot."""
    targets = (node.target for node in graph.graph.nodes if node.op == "get_attr" and "." not in node.target)
    return {target: value for target in targets if isinstance(value := getattr(graph, target), Tensor)}


def is_mostly_convolutions(graph: fx.GraphModule) -> bool:
    """Return whether convolutions produce nearly all elements that ``graph`` writes."""
    by_convolutions = by_others = 0
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and isinstance(value := node.meta.get("val"), Tensor):
            schema = node.target._schema
            elements = math.prod(size if isinstance(size, int) else 1 for size in value.shape)  # without the open batch
            if schema.name in _CONVOLUTIONS:
                by_convolutions += elements
            elif schema.name != _CONCATENATION and not _is_view(schema):
                by_others += elements
    return by_others < MAX_OTHER_FRACTION * (by_others + by_convolutions)


def _is_view(schema: Any) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
