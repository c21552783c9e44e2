"""Small rewrites of a part's graph for a processor, before its convolutions are packed: parts left out, or put in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten


def rewrite(graph: fx.GraphModule) -> None:
    """All of them; nothing but rounding changes."""
    _without_checks(graph)
    _without_undone_scalings(graph)
    _biases_apart(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _without_checks(graph: fx.GraphModule) -> None:
    """Takes out what only checks that a tensor is of the kind that was traced: a part is chosen by just that."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default:
            graph.graph.erase_node(node)


def _without_undone_scalings(graph: fx.GraphModule) -> None:
    """Takes out scalings that undo each other, such as one to -1..1 before an autoencoder that begins with one to 0..1."""
    known: dict[fx.Node, tuple[fx.Node, float, float]] = {}
    for node in list(graph.graph.nodes):
        x = node.args[0] if node.args else None
        if not isinstance(x, fx.Node):
            continue
        base, scale, shift = known.get(x, (x, 1.0, 0.0))
        if node.target is _ATEN.to.dtype and x in known:
            with graph.graph.inserting_before(node):
                cast = graph.graph.call_function(node.target, (base, *node.args[1:]), node.kwargs)
            cast.meta = dict(node.meta)
            known[node] = cast, scale, shift
        elif (step := _step(node)) is not None:
            known[node] = base, scale, shift = base, scale * step[0], shift * step[0] + step[1]
            if (scale, shift) == (1.0, 0.0) and _exchangeable(node, base):
                node.replace_all_uses_with(base)


def _step(node: fx.Node) -> tuple[float, float] | None:
    """(scale, shift) of a node that only scales, or only shifts, by a number."""
    if len(node.args) != 2 or node.kwargs or not isinstance(number := node.args[1], int | float):
        return None
    steps: dict[Any, tuple[float, float] | None] = {
        _ATEN.mul.Tensor: (number, 0.0), _ATEN.div.Tensor: (1 / number, 0.0) if number else None,
        _ATEN.add.Tensor: (1.0, number), _ATEN.sub.Tensor: (1.0, -number),
    }  # fmt: skip
    return steps.get(node.target)


def _exchangeable(node: fx.Node, other: fx.Node) -> bool:
    """Whether ``other`` may stand for ``node``, which has the same values: it is of the same kind, and nobody writes into it."""
    return node.meta["val"].dtype == other.meta["val"].dtype and not _written_into(node)


def _written_into(node: fx.Node) -> bool:
    """Whether what follows writes into the node's tensor, or into a part of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)  # getitem has none
        if schema is not None and schema.is_mutable:
            return True
        if (schema is None or any(result.alias_info is not None for result in schema.returns)) and _written_into(user):
            return True
    return False


def _biases_apart(graph: fx.GraphModule) -> None:
    """Adds each linear layer's bias after its matrix product, where the compiler fuses it with what follows; else it is copied first."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.linear.default and len(node.args) > 2 and node.args[2] is not None:
            rows, weight, bias = node.args
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(_ATEN.linear.default, (rows, weight))
                added = graph.graph.call_function(_ATEN.add.Tensor, (product, bias))
            added.meta = dict(node.meta)
            node.replace_all_uses_with(added)
            graph.graph.erase_node(node)
