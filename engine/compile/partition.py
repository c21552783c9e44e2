"""Partition of a graph: a static part that depends on prompts and timesteps alone, and a dynamic part with the rest.

The prompt's keys and values, the timestep embeddings and what every layer computes from them are the same from tick to
tick. They are read off the graph, so this works for every architecture: a node is static if no image leads to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

#: Dimensions of an image or a latent.
IMAGE_DIMENSIONS = 4


def dynamic_inputs(tensors: Sequence[tuple[str, tuple[int, ...], bool]]) -> list[int]:
    """Return the indices of a call's tensors that are new at every tick: the first one, images and latents.

    ``tensors`` are (dtype, sizes, is_batched); ``sizes`` leave out the batch.
    """
    return [
        i for i, (_, sizes, is_batched) in enumerate(tensors) if i == 0 or len(sizes) + is_batched >= IMAGE_DIMENSIONS
    ]


def partition(
    graph: fx.GraphModule, dynamic: Sequence[int], batched: Sequence[bool]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Split a graph whose ``dynamic`` inputs are new at every tick into (static, dynamic); None if all is dynamic.

    The static graph takes the other inputs and returns a list of tensors, contiguous. The dynamic graph takes the
    dynamic inputs, then that list. The first dimension of each ``batched`` input is the batch, the only open one.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    static_inputs = [node for i, node in enumerate(inputs) if i not in dynamic]
    if not any(batched[i] for i in range(len(inputs)) if i not in dynamic):
        return None
    dynamic_nodes = {inputs[i] for i in dynamic}
    sizes = {node for node in graph.graph.nodes if _is_batch_size(node)}
    constants: set[fx.Node] = set()
    for node in graph.graph.nodes:
        operands = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op == "call_function" and node not in sizes and all(one in constants for one in operands)
        ):
            constants.add(node)
        elif node.op == "output" or any(one in dynamic_nodes for one in operands if one not in sizes):
            dynamic_nodes.add(node)
    available_on_both = constants | sizes

    def boundary() -> list[fx.Node]:
        operands = (one for node in graph.graph.nodes if node in dynamic_nodes for one in node.all_input_nodes)
        return list(dict.fromkeys(one for one in operands if one not in dynamic_nodes and one not in available_on_both))

    # A node that cannot be passed, such as heads folded into the batch, is recomputed on the dynamic side.
    while recomputed := [node for node in boundary() if node.op != "placeholder" and not _is_passable(node)]:
        dynamic_nodes.update(recomputed)
    passed = boundary()
    if not any(node.op != "placeholder" for node in passed):
        return None
    batch_inputs = [inputs[i] for i in range(len(inputs)) if batched[i]]
    static_batch = [node for node in batch_inputs if node in static_inputs]
    dynamic_batch = [node for node in batch_inputs if node not in static_inputs]
    return (
        _extract(graph, static_inputs, [], passed, static_batch),
        _extract(graph, [inputs[i] for i in dynamic], passed, [], dynamic_batch),
    )


def _extract(
    graph: fx.GraphModule,
    inputs: Sequence[fx.Node],
    passed: Sequence[fx.Node],
    results: Sequence[fx.Node],
    batch: Sequence[fx.Node],
) -> fx.GraphModule:
    """Copy the nodes between ``inputs`` and ``results`` to a new graph; without ``results``, up to the graph's output.

    ``passed`` are further inputs, computed by the other side. ``batch`` are the new graph's batched inputs.
    """
    extracted, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate([*inputs, *passed]):
        copies[node] = extracted.placeholder(f"input_{number}")
        copies[node].meta = dict(node.meta)
    for node in passed:  # in the layout that the other side returns
        copies[node].meta["val"] = torch.clone(node.meta["val"], memory_format=torch.contiguous_format)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    needed, pending = set[fx.Node](), [*results] or [output]
    while pending:
        node = pending.pop()
        if node not in needed and node not in copies:
            needed.add(node)
            pending += node.all_input_nodes
    batch_size: fx.Node | None = None
    for node in graph.graph.nodes:
        if node not in needed:
            continue
        if _is_batch_size(node) and node.args[0] not in copies:  # of an input on the other side
            if batch_size is None:
                batch_size = extracted.call_function(torch.ops.aten.sym_size.int, (copies[batch[0]], 0))
            copies[node] = batch_size
        elif node.op == "placeholder":
            continue  # only its size is needed
        elif node.op == "output":
            extracted.output(fx.map_arg(node.args[0], lambda one: copies[one]))
        else:
            copies[node] = extracted.node_copy(node, lambda one: copies[one])
    if results:
        clone = torch.ops.aten.clone.default
        options: dict[str, Any] = {"memory_format": torch.contiguous_format}
        extracted.output([extracted.call_function(clone, (copies[node],), options) for node in results])
    extracted.lint()
    return fx.GraphModule(graph, extracted)


def _is_batch_size(node: fx.Node) -> bool:
    """Return whether the node is the size of an input's first dimension."""
    if node.op != "call_function" or node.target is not torch.ops.aten.sym_size.int:
        return False
    tensor, dimension = node.args
    return isinstance(tensor, fx.Node) and tensor.op == "placeholder" and bool(dimension == 0)


def _is_passable(node: fx.Node) -> bool:
    """Return whether the node is a tensor whose only open dimension is its first, and that is the batch itself."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return False
    first, *others = value.shape
    is_batch_or_fixed = isinstance(first, int) or first.node.expr.is_Symbol
    return bool(is_batch_or_fixed) and all(isinstance(size, int) for size in others)
