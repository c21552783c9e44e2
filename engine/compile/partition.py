"""A part's graph in two: what follows from prompts and timesteps alone, and the rest, which takes that as given.

Keys and values of the prompt, embeddings of the timesteps and what every layer makes of them are the same from tick to tick. Found in the
graph itself, so for every architecture alike: whatever no picture leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

#: Dimensions of a picture or a latent; such a tensor, and the first of a call, is new at every tick.
PICTURE = 4


def dynamic_inputs(tensors: Sequence[tuple[str, tuple[int, ...], bool]]) -> list[int]:
    """Which tensors of a call are new at every tick; the others steer. Sizes are told beside the batch."""
    return [i for i, (_, sizes, batched) in enumerate(tensors) if i == 0 or len(sizes) + batched >= PICTURE]


def partition(
    graph: fx.GraphModule, changing: Sequence[int], batched: Sequence[bool]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """(steady, rest) of a graph whose inputs ``changing`` are new at every tick; None where nothing is steady.

    ``steady`` takes the other inputs and gives a list of tensors, contiguous; ``rest`` takes those that change and then that list.
    The first dimension of each ``batched`` input is the batch, the only open one.
    """
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    kept = [place for i, place in enumerate(places) if i not in changing]
    if not any(batched[i] for i in range(len(places)) if i not in changing):
        return None
    moves = {places[i] for i in changing}
    sizes = {node for node in graph.graph.nodes if _is_size(node)}
    constant: set[fx.Node] = set()
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op == "call_function" and node not in sizes and all(one in constant for one in inputs)
        ):
            constant.add(node)
        elif node.op == "output" or any(one in moves for one in inputs if one not in sizes):
            moves.add(node)
    anywhere = constant | sizes

    def border() -> list[fx.Node]:
        found = (one for node in graph.graph.nodes if node in moves for one in node.all_input_nodes)
        return list(dict.fromkeys(one for one in found if one not in moves and one not in anywhere))

    # What cannot be handed over as it is, such as heads folded into the batch, is made again on the other side.
    while again := [node for node in border() if node.op != "placeholder" and not _portable(node)]:
        moves.update(again)
    edge = border()
    if not any(node.op != "placeholder" for node in edge):
        return None
    by_batch = [places[i] for i in range(len(places)) if batched[i]]
    return (
        _part(graph, kept, [], edge, [place for place in by_batch if place in kept]),
        _part(graph, [places[i] for i in changing], edge, [], [place for place in by_batch if place not in kept]),
    )


def _part(
    graph: fx.GraphModule,
    inputs: Sequence[fx.Node],
    given: Sequence[fx.Node],
    results: Sequence[fx.Node],
    batch: Sequence[fx.Node],
) -> fx.GraphModule:
    """The part of ``graph`` from ``inputs`` and ``given`` nodes to ``results``, or to its output where there are none."""
    made, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate([*inputs, *given]):
        copies[node] = made.placeholder(f"given_{number}")
        copies[node].meta = dict(node.meta)
    for node in given:  # handed over as the other part's output gives it
        copies[node].meta["val"] = torch.clone(node.meta["val"], memory_format=torch.contiguous_format)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    needed, open_ = set[fx.Node](), [*results] or [output]
    while open_:
        node = open_.pop()
        if node not in needed and node not in copies:
            needed.add(node)
            open_ += node.all_input_nodes
    rows: fx.Node | None = None
    for node in graph.graph.nodes:
        if node not in needed:
            continue
        if _is_size(node) and node.args[0] not in copies:  # the batch, asked of an input that is on the other side
            if rows is None:
                rows = made.call_function(torch.ops.aten.sym_size.int, (copies[batch[0]], 0))
            copies[node] = rows
        elif node.op == "placeholder":
            continue  # its size alone is asked for
        elif node.op == "output":
            made.output(fx.map_arg(node.args[0], lambda one: copies[one]))
        else:
            copies[node] = made.node_copy(node, lambda one: copies[one])
    if results:
        made.output([made.call_function(torch.ops.aten.clone.default, (copies[node],), {"memory_format": torch.contiguous_format})
                     for node in results])  # fmt: skip
    made.lint()
    return fx.GraphModule(graph, made)


def _is_size(node: fx.Node) -> bool:
    """Whether the node is the batch of an input."""
    if node.op != "call_function" or node.target is not torch.ops.aten.sym_size.int:
        return False
    place, dimension = node.args
    return isinstance(place, fx.Node) and place.op == "placeholder" and bool(dimension == 0)


def _portable(node: fx.Node) -> bool:
    """Whether the node is a tensor whose only open dimension is its first, and that is the batch itself."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return False
    first, *others = value.shape
    plain = isinstance(first, int) or first.node.expr.is_Symbol
    return bool(plain) and all(isinstance(size, int) for size in others)
