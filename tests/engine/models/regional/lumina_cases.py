"""What the tests of both Luminas share: models, inputs, a reference with stale keys, and the comparison of a graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.bench.small_weights import build_small
from engine.compile.builder import export, make_recipe
from engine.compile.dispatch import Backend, tree_unflatten
from engine.compile.fx_source import FxSource, constants, write_source
from engine.compile.partition import dynamic_inputs
from engine.models import Condition
from engine.models.architectures.lumina import LuminaNext
from engine.models.regional.base import TokenChoice

CPU = torch.device("cpu")
#: Length of a padded prompt in tokens, and its width.
PROMPT = (12, 32)
#: Latents that are large, tall, small, wide, and one token wide, each with the lengths of the rows' prompts.
CASES = (
    pytest.param((96, 64), (7, 2), marks=pytest.mark.slow),
    ((24, 16), (7, 12, 1)),
    ((12, 8), (5,)),
    ((4, 10), (3, 3, 3)),
    ((6, 2), (12, 2)),
)


def make(architecture: type[LuminaNext], family: str, device: torch.device = CPU) -> LuminaNext:
    """Return a small model. Its weights are large enough that each token depends visibly on the others."""
    components = build_small(family, torch.float32)
    torch.manual_seed(1)
    for parameter in components["transformer"].parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    components["transformer"] = components["transformer"].to(device)
    return architecture(components, device, torch.float32)


@dataclass(frozen=True)
class Inputs:
    """Latents, timesteps from 0 to 1000, and prompts of a call."""

    x: Tensor
    t: Tensor
    condition: Condition


def draw_inputs(size: tuple[int, int], lengths: tuple[int, ...], channels: int, seed: int = 0) -> Inputs:
    """Draw the inputs of as many rows as there are ``lengths``, the prompts' own lengths in tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(PROMPT[0])[None] < torch.tensor(lengths)[:, None]).long()
    prompts = torch.randn(len(lengths), *PROMPT, generator=generator)
    x = torch.randn(len(lengths), channels, *size, generator=generator)
    t = torch.rand(len(lengths), generator=generator) * 900 + 50
    return Inputs(x, t, Condition(prompts, mask=mask, lengths=lengths))


def choose(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Return a third of the tokens' indices, others in each row and in no order, (rows, 1, 1, A)."""
    generator = torch.Generator().manual_seed(seed)
    count = max(1, tokens // 3)
    return torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(rows)])[:, None, None]


def tokens_of(latents: Tensor) -> Tensor:
    """Return the patches (rows, N, C · 4) of latents: row by row, each with a channel's four pixels together."""
    height, width = latents.shape[2:]
    corners = [(i, j) for i in range(0, height, 2) for j in range(0, width, 2)]
    return torch.stack([latents[:, :, i : i + 2, j : j + 2].flatten(1) for i, j in corners], 1)


def select(tokens: Tensor, active: Tensor, dim: int = 1) -> Tensor:
    """Return the active tokens of each row; the tokens are dimension ``dim``."""
    return torch.stack([row.index_select(dim - 1, one.flatten()) for row, one in zip(tokens, active, strict=True)])


@contextmanager
def hooked(modules: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``hook`` with each output of the modules; what it returns takes its place."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_stale(
    computed_tokens: Mapping[Any, Tensor], earlier: Callable[[], object], now: Callable[[], Tensor]
) -> Tensor:
    """Return what ``now`` does if its tokens that are not computed keep the keys and values of ``earlier``.

    Both call the dense model. ``computed_tokens`` is (rows, tokens) bool for each attention.
    """
    recorded: dict[nn.Module, Tensor] = {}
    is_computed = {layer: computed for attn, computed in computed_tokens.items() for layer in (attn.to_k, attn.to_v)}
    with hooked(list(is_computed), lambda layer, _inputs, output: recorded.update({layer: output})):
        earlier()
    assert set(recorded) == set(is_computed)
    with hooked(
        list(is_computed),
        lambda layer, _inputs, output: torch.where(is_computed[layer][:, :, None], output, recorded[layer]),
    ):
        return now()


def linear_layers(model: nn.Module, call: Callable[[], object]) -> set[str]:
    """Return the names of the linear layers that a call runs."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    called: set[str] = set()
    with hooked(list(names), lambda module, _inputs, _output: called.add(names[module])):
        call()
    return called


def run(model: LuminaNext, inputs: Inputs, choice: TokenChoice | None = None) -> tuple[Tensor, Tensor]:
    """Return the tokens of a call and its keys and values; without a choice, all of them."""
    with torch.inference_mode():
        return model.denoise_tokens(inputs.x, inputs.t, inputs.condition, 0.0, choice or TokenChoice())


def check_export(model: LuminaNext, channels: int, with_text: bool) -> None:
    """Assert that the graph of a call for some tokens, with an open batch and the model's weights, equals the module.

    The prompts' part of it must be static.
    """
    component = model.compiled_regions
    assert component is not None
    calls = []
    for rows in (3, 1, 5):
        inputs = draw_inputs((12, 8), tuple(range(2, 2 + rows)), channels, rows)
        choice = TokenChoice(choose(rows, 24, rows), run(model, inputs)[1], with_text)
        calls.append((inputs, choice, run(model, inputs, choice)))
    module, signature = component.module, component.requested
    assert signature is not None
    exported = export(json.loads(json.dumps(make_recipe(component.name, module, signature, torch.float32, CPU, 2))))
    assert exported.static is not None
    graph = exported.program().module()
    weights = {f"module.{key}": tensor for key, tensor in module.named_parameters()}
    graph.load_state_dict({key: weights[key] for key in graph.state_dict() if key in weights}, strict=False)
    static = FxSource(write_source(exported.static), weights | constants(exported.static))
    dynamic = dynamic_inputs(signature.tensors)
    served: list[int] = []

    def call(tensors: Sequence[Tensor]) -> Any:
        served.append(len(tensors[0]))
        computed = static(*(tensor for i, tensor in enumerate(tensors) if i not in dynamic))
        return tree_unflatten(exported.outputs, iter(graph(*(tensors[i] for i in dynamic), *computed)))

    component.install(signature, Backend(call), component.generation)
    for inputs, choice, expected in calls:
        for one, other in zip(run(model, inputs, choice), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert served == [3, 1, 5]
