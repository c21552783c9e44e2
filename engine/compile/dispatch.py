"""Dispatch of a model component's calls to compiled backends, from the first frame on.

A call is identified by its signature: the structure of its arguments, and each tensor's dtype and size apart from the
batch. A signature that has a backend runs on it. Any other runs the module itself, and is recorded as requested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
#: Arguments or results without their tensors: ("tensor",), ("list", items), ("dict", pairs) or ("constant", value).
TreeSpec = Sequence[Any]
#: Largest batch that a backend accepts, in rows.
MAX_ROWS = 63


class TensorSpec(NamedTuple):
    """Dtype and size of a tensor argument; ``sizes`` leave out the first dimension if that is the batch."""

    dtype: str
    sizes: tuple[int, ...]
    is_batched: bool


@dataclass(frozen=True)
class CallSignature:
    """Structure of a call's arguments and the specs of its tensors: one backend serves all calls that share both."""

    structure: TreeSpec
    tensors: tuple[TensorSpec, ...]


class RowCounts(NamedTuple):
    """Rows of a component's calls: all numbers that the present settings lead to, and the most with any guidance."""

    present: tuple[int, ...] = (1,)
    largest: int = MAX_ROWS


class Recorder(Protocol):
    """A backend that replays CUDA graphs, one for each number of rows. Other numbers run without a graph."""

    def is_recorded(self, rows: int) -> bool:
        """Return whether calls of so many rows are replayed."""

    def record(self, tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Any]:
        """Record a call and return its replay, which serves no call yet. Raises RuntimeError."""

    def publish(self, replay: Callable[[Sequence[Tensor]], Any]) -> None:
        """Let a recorded replay serve the calls of as many rows."""


class BackendUnusable(RuntimeError):
    """A backend can no longer serve its calls: the module runs instead."""


@dataclass(frozen=True)
class Backend:
    """A fast implementation: ``call`` takes the tensors of a call and returns what the module would.

    ``max_rows`` is its largest batch. ``version`` is that of the weights it holds a copy of, None where it follows
    them. ``recorder`` records its CUDA graphs, None where it has none. A faster backend may replace one that
    ``is_provisional``.
    """

    call: Callable[[Sequence[Tensor]], Any]
    max_rows: int = MAX_ROWS
    version: int | None = None
    recorder: Recorder | None = None
    is_provisional: bool = False


class CompiledModule:
    """A callable that stands in for ``module`` and runs a compiled backend where there is one for the call's signature.

    ``name`` is the component's name in the model. ``is_unmodified`` returns whether the module currently computes what
    its configuration alone defines; while it does not, every call runs the module itself.
    ``backends`` and ``rejected`` are by signature, and so is ``unrecordable``: calls of which no CUDA graph is tried
    again. ``called`` is the signature of the last call, ``requested`` the same if that had no backend.
    ``generation`` goes up when the weights move to other memory: backends that were begun before are not installed.
    """

    def __init__(self, name: str, module: nn.Module, is_unmodified: Callable[[], bool] = lambda: True) -> None:
        self.name, self.module, self.is_unmodified = name, module, is_unmodified
        self.backends: dict[CallSignature, Backend] = {}
        self.rejected: set[CallSignature] = set()
        self.unrecordable: set[CallSignature] = set()
        self.requested: CallSignature | None = None
        self.called: CallSignature | None = None
        self.version = self.generation = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.is_unmodified():
            return self.module(*arguments, **options)
        tensors: list[Tensor] = []
        structure = tree_flatten((arguments, options), tensors)
        signature = signature_of(structure, tensors)
        backend = self.backends.get(signature)
        if backend is not None and backend.version not in (None, self.version):
            del self.backends[signature]  # its copy of the weights is outdated
            backend = None
        self.called = signature
        self.requested = signature if backend is None and signature not in self.rejected else None
        if backend is None or len(tensors[0]) > backend.max_rows:
            return self.module(*arguments, **options)
        try:
            return backend.call(tensors)
        except BackendUnusable as error:
            log.warning("the %s runs uncompiled: %s", self.name, error)
            self.backends.pop(signature, None)
            self.rejected.add(signature)
            return self.module(*arguments, **options)

    def install(self, signature: CallSignature, backend: Backend, generation: int) -> None:
        """Serve the signature with ``backend``, unless the weights have moved since ``generation``."""
        if generation == self.generation:
            self.backends[signature] = backend

    def mark_weights_changed(self) -> None:
        """Invalidate everything that was computed from the module's weights."""
        self.version += 1

    def invalidate_backends(self) -> None:
        """Drop all backends: the module's weights are other tensors now."""
        self.generation += 1
        self.backends.clear()
        self.rejected.clear()
        self.unrecordable.clear()


def signature_of(structure: TreeSpec, tensors: Sequence[Tensor]) -> CallSignature:
    """Return the signature of a call. The first tensor is batched; others are if they have as many rows."""
    rows = len(tensors[0])
    specs = []
    for tensor in tensors:
        is_batched = tensor.dim() > 0 and len(tensor) == rows
        sizes = tensor.shape[1:] if is_batched else tensor.shape
        specs.append(TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(sizes), is_batched))
    return CallSignature(structure, tuple(specs))


def example_inputs(signature: CallSignature, rows: int, device: torch.device | str) -> list[Tensor]:
    """Return tensors for a call of ``rows`` rows: noise, and mid-range timesteps for tensors without a width.

    Integers are a mask of tokens: 1 in the first half, 0 after it.
    """
    inputs = []
    for spec in signature.tensors:
        sizes = (rows, *spec.sizes) if spec.is_batched else spec.sizes
        dtype: torch.dtype = getattr(torch, spec.dtype)
        if not dtype.is_floating_point:
            mask = torch.zeros(sizes, dtype=dtype, device=device)
            mask[..., : max(1, sizes[-1] // 2) if sizes else None] = 1
            inputs.append(mask)
        elif len(sizes) > 1:
            inputs.append(to_compiled_layout(torch.randn(sizes, device=device).to(dtype)))
        else:
            inputs.append(torch.full(sizes, 500.0, dtype=dtype, device=device))
    return inputs


def to_compiled_layout(tensor: Tensor) -> Tensor:
    """Return the tensor in the memory format that backends are built for: channels last for images and latents."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()


def tree_flatten(value: Any, tensors: list[Tensor]) -> TreeSpec:
    """Return the structure of ``value``, and append its tensors to ``tensors`` in order."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return ("tensor",)
    if isinstance(value, list | tuple):
        return ("list", tuple(tree_flatten(item, tensors) for item in value))
    if isinstance(value, dict):
        return ("dict", tuple((key, tree_flatten(item, tensors)) for key, item in value.items()))
    return ("constant", value)


def tree_unflatten(structure: TreeSpec, tensors: Iterator[Tensor]) -> Any:
    """Invert ``tree_flatten``; lists come back as tuples."""
    kind = structure[0]
    if kind == "tensor":
        return next(tensors)
    if kind == "list":
        return tuple(tree_unflatten(item, tensors) for item in structure[1])
    if kind == "dict":
        return {key: tree_unflatten(item, tensors) for key, item in structure[1]}
    return structure[1]
