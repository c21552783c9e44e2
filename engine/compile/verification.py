"""Verification: a backend is used only if its output equals the module's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import Backend, CallSignature, CompiledModule, example_inputs, tree_unflatten

#: Largest relative error (root mean square) of a backend's output against the module's, by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.04}
#: Comparisons in a row that may meet weights in motion.
MAX_COMPARISONS = 3


class WeightsChanged(Exception):
    """The weights of a component changed while its backend was built or verified."""


@torch.inference_mode()
def verify(
    component: CompiledModule, signature: CallSignature, backend: Backend, device: torch.device, rows: int = 2
) -> Backend:
    """Return ``backend`` if its output for ``rows`` rows equals the module's within the tolerance.

    Raises RuntimeError, or WeightsChanged where the two ran on different weights, as while a LoRA fader moves.
    """
    tensors = example_inputs(signature, rows, device)
    arguments, options = tree_unflatten(signature.structure, iter(tensors))
    for _ in range(MAX_COMPARISONS):
        version = component.version
        expected = _flatten_output(component.module(*arguments, **options))
        actual = _flatten_output(backend.call(tensors))
        error = ((actual - expected).square().mean() / expected.square().mean().clamp(min=1e-12)).sqrt().item()
        tolerance = TOLERANCE[next(component.module.parameters()).dtype]
        if error <= tolerance:
            return backend
        if component.version == version and backend.version in (None, version):
            raise RuntimeError(f"output error of {error:.1%} exceeds {tolerance:.1%}")
    raise WeightsChanged


def _flatten_output(value: Any) -> Tensor:
    """Return all numbers of a nested output as one float32 vector."""
    if isinstance(value, Tensor):
        return value.float().flatten()
    return torch.cat([_flatten_output(item) for item in value])
