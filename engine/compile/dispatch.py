"""A part of a model that something faster may run: called as the module is, from the first frame on.

A call is known by its *shape*: which arguments are tensors, of what size beside the batch, and what the others are. For a shape that has
a fast run, that is taken; any other goes through the module itself, and is remembered as wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Arguments or results without their tensors: ("tensor",), ("list", items), ("dict", pairs) or ("constant", value).
TreeSpec = Sequence[Any]
#: Rows that a fast run takes at most.
MAX_ROWS = 63


@dataclass(frozen=True)
class CallSignature:
    """What calls that one fast run serves have in common. A tensor is told by its dtype, its sizes, and whether its first is the batch."""

    form: TreeSpec
    tensors: tuple[tuple[str, tuple[int, ...], bool], ...]


@dataclass(frozen=True)
class Backend:
    """Something fast: ``call`` takes the tensors of a call and gives what the module would, for at most ``rows`` rows.

    ``version`` is that of the weights that it was made with; None where it follows them.
    """

    call: Callable[[Sequence[Tensor]], Any]
    rows: int = MAX_ROWS
    version: int | None = None


class CompiledModule:
    """``module``, to be called in its place. ``name`` says which part of a model it is.

    ``plain`` says whether the module does now what its configuration alone says; else it is called itself.
    """

    def __init__(self, name: str, module: nn.Module, plain: Callable[[], bool] = lambda: True) -> None:
        self.name, self.module, self.plain = name, module, plain
        self.runs: dict[CallSignature, Backend] = {}
        self.refused: set[CallSignature] = set()
        self.wanted: CallSignature | None = None
        self.version = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.plain():
            return self.module(*arguments, **options)
        tensors: list[Tensor] = []
        form = tree_flatten((arguments, options), tensors)
        shape = signature_of(form, tensors)
        run = self.runs.get(shape)
        if run is not None and run.version not in (None, self.version):
            del self.runs[shape]  # it has other weights
            run = None
        self.wanted = shape if run is None and shape not in self.refused else None
        if run is None or len(tensors[0]) > run.rows:
            return self.module(*arguments, **options)
        return run.call(tensors)

    def changed(self) -> None:
        """The module's weights are others now: nothing that was computed from them holds."""
        self.version += 1


def signature_of(form: TreeSpec, tensors: Sequence[Tensor]) -> CallSignature:
    """The shape of a call. The first tensor is batched; others are where they have as many rows."""
    rows = len(tensors[0])
    batched = [tensor.dim() > 0 and len(tensor) == rows for tensor in tensors]
    sizes = (tuple(tensor.shape[1:] if b else tensor.shape) for tensor, b in zip(tensors, batched, strict=True))
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return CallSignature(form, tuple(zip(names, sizes, batched, strict=True)))


def example_inputs(shape: CallSignature, rows: int, device: torch.device | str) -> list[Tensor]:
    """Tensors of that shape with ``rows`` rows: noise, and for those without a width timesteps of a middling size."""
    made = []
    for dtype, sizes, batched in shape.tensors:
        whole = (rows, *sizes) if batched else sizes
        kind: torch.dtype = getattr(torch, dtype)
        if not kind.is_floating_point:
            made.append(torch.zeros(whole, dtype=kind, device=device))
        elif len(whole) > 1:
            made.append(to_compiled_layout(torch.randn(whole, device=device).to(kind)))
        else:
            made.append(torch.full(whole, 500.0, dtype=kind, device=device))
    return made


def to_compiled_layout(tensor: Tensor) -> Tensor:
    """The tensor in the memory order that fast runs are built for: channels last for pictures."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()


def tree_flatten(value: Any, tensors: list[Tensor]) -> TreeSpec:
    """The form of ``value``; its tensors are appended to ``tensors`` in their order."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return ("tensor",)
    if isinstance(value, list | tuple):
        return ("list", tuple(tree_flatten(item, tensors) for item in value))
    if isinstance(value, dict):
        return ("dict", tuple((key, tree_flatten(item, tensors)) for key, item in value.items()))
    return ("constant", value)


def tree_unflatten(form: TreeSpec, tensors: Iterator[Tensor]) -> Any:
    """What ``taken_apart`` took apart; lists come back as tuples."""
    kind = form[0]
    if kind == "tensor":
        return next(tensors)
    if kind == "list":
        return tuple(tree_unflatten(item, tensors) for item in form[1])
    if kind == "dict":
        return {key: tree_unflatten(item, tensors) for key, item in form[1]}
    return form[1]
