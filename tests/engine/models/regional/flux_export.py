"""A regional module exported as the builder does it, in place of the module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.compile.builder import export, make_recipe
from engine.compile.dispatch import Backend, tree_unflatten
from engine.compile.fx_source import FxSource, constants, write_source
from engine.compile.partition import dynamic_inputs
from engine.models.architectures import Architecture
from engine.models.regional.base import TokenChoice
from tests.engine.models.regional.flux_cases import CPU, Inputs


def check_export(architecture: Architecture, with_text: bool) -> None:
    """Assert that the graph of a call for some tokens, with an open batch and the module's weights, equals the module.

    What the text and the timestep alone lead to must be in its static part, the choice of tokens in its dynamic part.
    """
    regions = architecture.compiled_regions
    assert regions is not None
    ticks = [Inputs(architecture, rows, 8, 4, rows) for rows in (3, 1, 5)]
    choices = [TokenChoice(tick.draw(6), tick.run_tokens()[1], with_text) for tick in ticks]
    expected = [tick.run_tokens(choice) for tick, choice in zip(ticks, choices, strict=True)]
    signature = regions.requested
    assert signature is not None
    recipe = make_recipe(regions.name, regions.module, signature, torch.float32, CPU, 1)
    exported = export(json.loads(json.dumps(recipe)))
    assert exported.static is not None
    graph = exported.program().module()
    module = regions.module
    weights = {f"module.{key}": tensor for key, tensor in (*module.named_parameters(), *module.named_buffers())}
    graph.load_state_dict({key: weights[key] for key in graph.state_dict() if key in weights}, strict=False)
    static = FxSource(write_source(exported.static), weights | constants(exported.static))
    dynamic = dynamic_inputs(signature.tensors)
    assert [signature.tensors[i].sizes[-1] for i in dynamic[1:]] == [6, 32]  # the tokens and the cache
    called: list[int] = []

    def call(tensors: Sequence[Tensor]) -> Any:
        called.append(len(tensors[0]))
        results = static(*(tensor for i, tensor in enumerate(tensors) if i not in dynamic))
        return tree_unflatten(exported.outputs, iter(graph(*(tensors[i] for i in dynamic), *results)))

    regions.install(signature, Backend(call), regions.generation)
    for tick, choice, (tokens, computed) in zip(ticks, choices, expected, strict=True):
        actual = tick.run_tokens(choice)
        assert torch.allclose(actual[0], tokens, atol=1e-5, rtol=1e-5)
        assert torch.allclose(actual[1], computed, atol=1e-5, rtol=1e-5)
    assert called == [3, 1, 5]
