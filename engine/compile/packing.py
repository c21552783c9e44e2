"""A processor's convolutions and widest linear layers on weights that lie as oneDNN wants them: laid out once, not anew at every call.

A compiled part takes its weights as they are when it is called, so that it follows them; but then oneDNN copies each convolution's into the
order of its kernels every time, which at one picture takes as long as the small ones themselves. So the compiled graph takes copies laid
out beforehand, and those whose weights have changed since are laid out again.

Pictures that are doubled before they are convolved need not be: see ``fusions``.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from engine.compile.fusions import spread

_ATEN = torch.ops.aten
#: Outputs for each input of a linear layer that gains by it; narrower ones lose at a single picture.
WIDE = 4


@dataclass(frozen=True)
class Packing:
    """How the weight called ``source`` is laid out: for a ``convolution``, a ``linear`` layer, or a ``doubling`` and a convolution as one.

    ``how`` tells of a convolution: padding, stride, dilation, groups, and the size of its pictures, (1, C, H, W).
    """

    source: str
    kind: str
    how: Sequence[Any] = ()

    def __call__(self, weight: Tensor) -> Tensor:
        if self.kind == "doubling":
            return spread(weight.detach())
        result: Tensor
        if self.kind == "linear":
            result = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        else:
            result = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *self.how)
        return result


class Packed:
    """The packed copies of ``weights``, by the names of their packings.

    ``held`` are all of them; ``renewed`` makes anew those whose weights were changed in place, and gives only these.
    """

    def __init__(self, packings: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor]) -> None:
        self._packings = [(name, Packing(**packing)) for name, packing in packings.items()]
        self._weights = weights
        self._seen: dict[str, int] = {}
        self.held = self.renewed()

    def renewed(self) -> dict[str, Tensor]:
        made = {}
        for name, packing in self._packings:
            weight = self._weights[packing.source]
            now = -1 if weight.is_inference() else weight._version
            if now < 0 or self._seen.get(name) != now:
                made[name], self._seen[name] = packing(weight), now
        return made


def available() -> bool:
    """Whether convolutions can take packed weights here: oneDNN on x86."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def pack(graph: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """Lets layers of ``graph`` take packed weights, and convolutions do an addition and a ReLU that follow too.

    Gives the packings by the names that the weights have in the graph, in the order in which they are called: the compiler counts them so.
    There are none where this processor or this precision has no such kernels.
    """
    if not available():
        return {}
    _tell_shapes()
    packings: dict[str, dict[str, Any]] = {}
    for node in list(graph.graph.nodes):
        packing = _packing(node)
        if packing is None:
            continue
        weight = graph.get_parameter(packing.source)
        if not _has_kernels(weight.dtype):
            continue
        name = f"packed_{len(packings)}"
        setattr(graph, name, packing(weight))
        packings[name] = asdict(packing)
        added, relu, done = _following(node) if packing.kind == "convolution" else (None, False, [node])
        x, bias, convolution = node.args[0], _arguments(node)[0], torch.ops.mkldnn._convolution_pointwise
        with graph.graph.inserting_before(done[-1]):
            kept = graph.graph.get_attr(name)
            weights = (kept, bias, *packing.how[:4])
            if packing.kind == "linear":
                made = graph.graph.call_function(
                    torch.ops.mkldnn._linear_pointwise.default, (x, *weights, "none", [], "")
                )
            elif packing.kind == "doubling":
                made = graph.graph.call_function(_ATEN.conv_transpose2d.input, (x.args[0], *weights, [2, 2], [1, 1]))
            elif added is None:
                made = graph.graph.call_function(convolution.default, (x, *weights, "relu" if relu else "none", [], ""))
            else:
                made = graph.graph.call_function(
                    convolution.binary, (x, added, *weights, "add", 1.0, "relu" if relu else None, [], None)
                )
        made.meta = dict(done[-1].meta)
        done[-1].replace_all_uses_with(made)
        for one in reversed(done):
            graph.graph.erase_node(one)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    inputs = [str(one.target) for node in graph.graph.nodes for one in node.all_input_nodes if one.op == "get_attr"]
    return {name: packings[name] for name in dict.fromkeys(inputs) if name in packings}


def _has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this precision on this processor."""
    asked = {
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    }
    return dtype not in asked or bool(asked[dtype]())


def _packing(node: fx.Node) -> Packing | None:
    """How the node's weight can be packed: a wide linear layer's, or a convolution's of pictures of a known size, the model's own."""
    if node.op != "call_function" or node.target not in (_ATEN.conv2d.default, _ATEN.linear.default):
        return None
    x, weight = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr" or node.kwargs:
        return None
    shape = weight.meta["val"].shape
    if node.target is _ATEN.linear.default:
        return Packing(str(weight.target), "linear") if shape[0] >= WIDE * shape[1] else None
    size = (1, *x.meta["val"].shape[1:])
    if not all(isinstance(side, int) for side in size):
        return None
    _, stride, padding, dilation, groups = _arguments(node)
    if [*shape[2:], *stride, *padding, *dilation, groups] == [3, 3, 1, 1, 1, 1, 1, 1, 1] and _doubles(x):
        return Packing(str(weight.target), "doubling")
    return Packing(str(weight.target), "convolution", (padding, stride, dilation, groups, size))


def _doubles(node: fx.Node) -> bool:
    """Whether the node repeats each pixel of its input, both ways."""
    if node.target is not _ATEN.upsample_nearest2d.vec:
        return False
    before, after = node.args[0], node.meta["val"]
    return isinstance(before, fx.Node) and tuple(after.shape[2:]) == tuple(
        2 * side for side in before.meta["val"].shape[2:]
    )


@functools.cache
def _tell_shapes() -> torch.library.Library | None:
    """Tells tracing what a convolution with an addition gives, which torch does not; kept for as long as this process lives."""
    name = "_convolution_pointwise.binary"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"mkldnn::{name}", "Meta"):
        return None
    library = torch.library.Library("mkldnn", "IMPL", "Meta")
    library.impl(name, lambda _x, added, *_: torch.empty_like(added))
    return library


def _following(node: fx.Node) -> tuple[fx.Node | None, bool, list[fx.Node]]:
    """(what is added to a convolution's result, whether a ReLU follows, the nodes that are done by one call from ``node`` on)."""
    done, added = [node], None
    if (sum_ := _only_user(node)) is not None and sum_.target is _ATEN.add.Tensor and not sum_.kwargs:
        other = next((one for one in sum_.args if one is not node), None)
        if isinstance(other, fx.Node) and _alike(other, node):
            added = other
            done.append(sum_)
    last = _only_user(done[-1])
    relu = last is not None and last.target is _ATEN.relu.default
    return added, relu, [*done, last] if relu and last is not None else done


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return isinstance(a, Tensor) and a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """(bias, stride, padding, dilation, groups) of a convolution."""
    given = node.args[2:]
    return (*given, *(None, [1, 1], [0, 0], [1, 1], 1)[len(given) :])
