"""Dispatch: a component is its module until its call's signature has a backend."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from engine.compile import Accelerator
from engine.compile.dispatch import (
    MAX_ROWS,
    Backend,
    CompiledModule,
    example_inputs,
    signature_of,
    tree_flatten,
    tree_unflatten,
)

CPU = torch.device("cpu")


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)

    def forward(self, x: torch.Tensor, extra: dict[str, torch.Tensor] | None = None, return_dict: bool = True) -> Any:
        return (x * self.scale + (extra["more"] if extra else 0.0),)


def test_a_call_is_flattened_and_unflattened() -> None:
    call = ((torch.zeros(2, 3), [torch.ones(2)], None), {"extra": {"more": torch.ones(4, 1)}, "return_dict": False})
    tensors: list[torch.Tensor] = []
    structure = tree_flatten(call, tensors)
    assert [tuple(tensor.shape) for tensor in tensors] == [(2, 3), (2,), (4, 1)]
    arguments, options = tree_unflatten(json.loads(json.dumps(structure)), iter(tensors))
    assert options["return_dict"] is False
    assert arguments[2] is None
    assert options["extra"]["more"] is tensors[2]
    signature = signature_of(structure, tensors)
    assert signature.tensors == (("float32", (3,), True), ("float32", (), True), ("float32", (4, 1), False))
    tensors = [torch.zeros(7, 3), torch.ones(7), torch.ones(4, 1)]
    assert signature_of(structure, tensors) == signature, "the batch is not part of a signature"
    assert [tuple(tensor.shape) for tensor in example_inputs(signature, 5, CPU)] == [(5, 3), (5,), (4, 1)]


def test_a_component_runs_its_module_until_a_backend_is_there() -> None:
    is_unmodified = [True]
    component = CompiledModule("denoiser", Double(), lambda: is_unmodified[0])
    x, too_many = torch.ones(2, 3), torch.ones(MAX_ROWS + 1, 3)
    assert torch.equal(component(x, return_dict=False)[0], 2 * x)
    signature = component.requested
    assert signature is not None
    component.backends[signature] = Backend(lambda tensors: (tensors[0] * 5,))
    assert torch.equal(component(x, return_dict=False)[0], 5 * x)
    assert torch.equal(component(torch.ones(9, 3), return_dict=False)[0], torch.full((9, 3), 5.0)), "any batch"
    assert torch.equal(component(too_many, return_dict=False)[0], 2 * too_many)
    assert component.requested is None, "a batch above max_rows requests nothing"
    component.requested = signature  # by a call that was running when the backend was installed
    accelerator = Accelerator("eager", CPU)
    accelerator.enabled = True
    accelerator.poll([component])
    assert accelerator.state == "eager", "a signature is not served twice"
    assert torch.equal(component(x)[0], 2 * x), "other arguments are another signature"
    assert component.requested is not None
    assert component.requested != signature
    component.rejected.add(component.requested)
    component(x)
    assert component.requested is None, "a rejected signature is not requested again"
    is_unmodified[0] = False
    assert torch.equal(component(x, return_dict=False)[0], 2 * x), "a modified module runs itself"
