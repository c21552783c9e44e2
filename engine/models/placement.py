"""Placement: move a loaded module to its device, beside a stream that runs there."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from engine.models.model_error import ModelError
from engine.runtime.device_lock import device_lock, split_into_chunks

M = TypeVar("M", bound=nn.Module)


def check_finite(module: nn.Module, what: str) -> None:
    """Raise ModelError that begins with ``what`` if a weight is NaN or infinite. Call it before ``place``."""
    damaged = next((key for key, tensor in module.named_parameters() if not bool(tensor.isfinite().all())), None)
    if damaged is not None:
        raise ModelError(f"{what} holds NaN or infinity in {damaged}; download the damaged file again")


def place(module: M, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> M:
    """Move ``module`` to ``device`` for inference, some layers at a time: a stream ticks in between. Return it.

    Weights with four dimensions take ``memory_format``.
    """
    module.requires_grad_(False).eval()
    parts: list[Any] = [part for part in module.modules() if not any(True for _ in part.children())]
    for group in split_into_chunks([*parts, module], _byte_count):  # the module last, for what lies outside the layers
        with device_lock(device):
            for part in group:
                part.to(device=device)
                if memory_format is not torch.preserve_format:
                    part.to(memory_format=memory_format)
    return module


def _byte_count(module: nn.Module) -> int:
    """Return the size of the weights that a module holds itself."""
    return sum(parameter.nbytes for parameter in module.parameters(recurse=False))
