"""Graph passes for CPU builds, run before the convolutions are packed: remove or reorder small operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten


def rewrite(graph: fx.GraphModule) -> None:
    """Run all passes in place. They change nothing but rounding."""
    _remove_metadata_checks(graph)
    _remove_inverse_scalings(graph)
    _split_linear_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _remove_metadata_checks(graph: fx.GraphModule) -> None:
    """Remove the checks that a tensor has the traced dtype and layout: the call's signature guarantees both."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default:
            graph.graph.erase_node(node)


def _remove_inverse_scalings(graph: fx.GraphModule) -> None:
    """Remove scalings that cancel out, such as one to -1..1 before an autoencoder that starts with one to 0..1."""
    scaled: dict[fx.Node, tuple[fx.Node, float, float]] = {}
    for node in list(graph.graph.nodes):
        x = node.args[0] if node.args else None
        if not isinstance(x, fx.Node):
            continue
        base, scale, shift = scaled.get(x, (x, 1.0, 0.0))
        if node.target is _ATEN.to.dtype and x in scaled:
            with graph.graph.inserting_before(node):
                cast = graph.graph.call_function(node.target, (base, *node.args[1:]), node.kwargs)
            cast.meta = dict(node.meta)
            scaled[node] = cast, scale, shift
        elif (step := _scale_and_shift(node)) is not None:
            scaled[node] = base, scale, shift = base, scale * step[0], shift * step[0] + step[1]
            if (scale, shift) == (1.0, 0.0) and _is_replaceable_by(node, base):
                node.replace_all_uses_with(base)


def _scale_and_shift(node: fx.Node) -> tuple[float, float] | None:
    """Return (scale, shift) of a node that only multiplies by a number or adds one, else None."""
    if len(node.args) != 2 or node.kwargs or not isinstance(number := node.args[1], int | float):
        return None
    steps: dict[Any, tuple[float, float] | None] = {
        _ATEN.mul.Tensor: (number, 0.0),
        _ATEN.div.Tensor: (1 / number, 0.0) if number else None,
        _ATEN.add.Tensor: (1.0, number),
        _ATEN.sub.Tensor: (1.0, -number),
    }
    return steps.get(node.target)


def _is_replaceable_by(node: fx.Node, other: fx.Node) -> bool:
    """Return whether ``other``, of equal values, may replace ``node``: same dtype, and ``node`` never mutated."""
    return node.meta["val"].dtype == other.meta["val"].dtype and not _is_mutated(node)


def _is_mutated(node: fx.Node) -> bool:
    """Return whether a later node writes into the node's tensor or into a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)  # getitem has none
        if schema is not None and schema.is_mutable:
            return True
        if (schema is None or any(result.alias_info is not None for result in schema.returns)) and _is_mutated(user):
            return True
    return False


def _split_linear_biases(graph: fx.GraphModule) -> None:
    """Add each linear layer's bias after its matrix product.

    There the compiler fuses the addition with the next operation; inside the layer the bias is copied to the output
    first.
    """
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.linear.default and len(node.args) > 2 and node.args[2] is not None:
            rows, weight, bias = node.args
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(_ATEN.linear.default, (rows, weight))
                total = graph.graph.call_function(_ATEN.add.Tensor, (product, bias))
            total.meta = dict(node.meta)
            node.replace_all_uses_with(total)
            graph.graph.erase_node(node)
