"""Packed weights on CPU: convolutions and wide linear layers in oneDNN's memory layout, computed once, not per call.

A compiled component reads its weights at each call, so that it follows their changes. But then oneDNN reorders each
convolution's weight at every call, which at one image takes as long as a small convolution itself. So the compiled
graph reads packed copies, and a copy is packed again when its weight has changed.

An image that is upsampled before a convolution need not be upsampled: see ``fusions``.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from engine.compile.fusions import upsample_kernel
from engine.runtime.onednn import has_kernels, has_operators

_ATEN = torch.ops.aten
#: Operators of oneDNN that packed graphs are made of.
_OPERATORS = (
    "_convolution_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)
#: Smallest ratio of outputs to inputs of a linear layer that is packed; narrower ones get slower at a single image.
MIN_LINEAR_EXPANSION = 4


@dataclass(frozen=True)
class Packing:
    """The layout of a packed weight: ``weight`` is its name, ``kind`` is "convolution", "linear" or "upsampling".

    "upsampling" is a nearest-neighbour upsampling by 2 and a convolution as one layer. ``arguments`` are those of a
    convolution: padding, stride, dilation, groups, and the size of its input, (1, C, H, W).
    """

    weight: str
    kind: str
    arguments: Sequence[Any] = ()

    def __call__(self, weight: Tensor) -> Tensor:
        if self.kind == "upsampling":
            return upsample_kernel(weight.detach())
        result: Tensor
        if self.kind == "linear":
            result = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        else:
            result = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *self.arguments)
        return result


class PackedWeights:
    """Packed copies of ``weights``. ``tensors`` holds all of them, by the names of their packings."""

    def __init__(self, packings: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor]) -> None:
        self._packings = [(name, Packing(**packing)) for name, packing in packings.items()]
        self._weights = weights
        self._versions: dict[str, int] = {}
        self.tensors = self.repack_changed()

    def repack_changed(self) -> dict[str, Tensor]:
        """Pack the weights that were changed in place since the last call, and return only these."""
        repacked = {}
        for name, packing in self._packings:
            weight = self._weights[packing.weight]
            version = -1 if weight.is_inference() else weight._version
            if version < 0 or self._versions.get(name) != version:
                repacked[name], self._versions[name] = packing(weight), version
        return repacked


def is_available() -> bool:
    """Return whether convolutions can use packed weights on this machine: oneDNN on x86."""
    return platform.machine().lower() in ("x86_64", "amd64") and has_operators(*_OPERATORS)


def pack(graph: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """Rewrite ``graph`` to use packed weights, and fuse an addition and a ReLU into the convolution before them.

    Return the packings by the names of the packed weights in the graph, in the order in which the graph uses them: the
    compiler numbers them so. There are none if this processor has no kernels for the graph's precision.
    """
    if not is_available():
        return {}
    _register_meta_kernel()
    packings: dict[str, dict[str, Any]] = {}
    for node in list(graph.graph.nodes):
        packing = _packing_of(node)
        if packing is None:
            continue
        weight = graph.get_parameter(packing.weight)
        if not has_kernels(weight.dtype):
            continue
        name = f"packed_{len(packings)}"
        setattr(graph, name, packing(weight))
        packings[name] = asdict(packing)
        addend, relu, replaced = _fusable_users(node) if packing.kind == "convolution" else (None, False, [node])
        x, bias, convolution = node.args[0], _arguments(node)[0], torch.ops.mkldnn._convolution_pointwise
        activation = "relu" if relu else None
        with graph.graph.inserting_before(replaced[-1]):
            packed = graph.graph.get_attr(name)
            weights = (packed, bias, *packing.arguments[:4])
            target: Any
            arguments: tuple[Any, ...]
            if packing.kind == "linear":
                target, arguments = torch.ops.mkldnn._linear_pointwise.default, (x, *weights, "none", [], "")
            elif packing.kind == "upsampling":
                target, arguments = _ATEN.conv_transpose2d.input, (x.args[0], *weights, [2, 2], [1, 1])
            elif addend is None:
                target, arguments = convolution.default, (x, *weights, activation or "none", [], "")
            else:
                target, arguments = convolution.binary, (x, addend, *weights, "add", 1.0, activation, [], None)
            result = graph.graph.call_function(target, arguments)
        result.meta = dict(replaced[-1].meta)
        replaced[-1].replace_all_uses_with(result)
        for old in reversed(replaced):
            graph.graph.erase_node(old)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    inputs = [str(one.target) for node in graph.graph.nodes for one in node.all_input_nodes if one.op == "get_attr"]
    return {name: packings[name] for name in dict.fromkeys(inputs) if name in packings}


def _packing_of(node: fx.Node) -> Packing | None:
    """Return how the weight of a node can be packed, or None.

    It must be the model's own, of a wide linear layer or of a convolution whose input has a known size.
    """
    if node.op != "call_function" or node.target not in (_ATEN.conv2d.default, _ATEN.linear.default):
        return None
    x, weight = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr" or node.kwargs:
        return None
    shape = weight.meta["val"].shape
    if node.target is _ATEN.linear.default:
        return Packing(str(weight.target), "linear") if shape[0] >= MIN_LINEAR_EXPANSION * shape[1] else None
    size = (1, *x.meta["val"].shape[1:])
    if not all(isinstance(side, int) for side in size):
        return None
    _, stride, padding, dilation, groups = _arguments(node)
    if [*shape[2:], *stride, *padding, *dilation, groups] == [3, 3, 1, 1, 1, 1, 1, 1, 1] and _is_upsample2x(x):
        return Packing(str(weight.target), "upsampling")
    return Packing(str(weight.target), "convolution", (padding, stride, dilation, groups, size))


def _is_upsample2x(node: fx.Node) -> bool:
    """Return whether the node is a nearest-neighbour upsampling by 2 in both directions."""
    if node.target is not _ATEN.upsample_nearest2d.vec:
        return False
    before, after = node.args[0], node.meta["val"]
    if not isinstance(before, fx.Node):
        return False
    return tuple(after.shape[2:]) == tuple(2 * side for side in before.meta["val"].shape[2:])


@functools.cache
def _register_meta_kernel() -> torch.library.Library | None:
    """Register the output shape of a fused addition if torch does not; the result must stay referenced."""
    name = "_convolution_pointwise.binary"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"mkldnn::{name}", "Meta"):
        return None
    library = torch.library.Library("mkldnn", "IMPL", "Meta")
    library.impl(name, lambda _x, addend, *_: torch.empty_like(addend))
    return library


def _fusable_users(node: fx.Node) -> tuple[fx.Node | None, bool, list[fx.Node]]:
    """Return (tensor added to a convolution's result, whether a ReLU follows, nodes that one call replaces)."""
    replaced, addend = [node], None
    if (total := _only_user(node)) is not None and total.target is _ATEN.add.Tensor and not total.kwargs:
        other = next((one for one in total.args if one is not node), None)
        if isinstance(other, fx.Node) and _has_same_type(other, node):
            addend = other
            replaced.append(total)
    last = _only_user(replaced[-1])
    relu = last is not None and last.target is _ATEN.relu.default
    return addend, relu, [*replaced, last] if relu and last is not None else replaced


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_same_type(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two nodes are tensors of the same dtype and shape."""
    a, b = one.meta["val"], other.meta["val"]
    return isinstance(a, Tensor) and a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return (bias, stride, padding, dilation, groups) of a convolution, defaults included."""
    arguments = node.args[2:]
    return (*arguments, *(None, [1, 1], [0, 0], [1, 1], 1)[len(arguments) :])
