"""Host reads: find what a function reads back from its device or uploads to it, which no CUDA graph can contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
_ATEN = torch.ops.aten
#: Operators whose result depends on values that the host waits for.
_READING = {
    _ATEN._local_scalar_dense,
    _ATEN.is_nonzero,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN.unique_consecutive,
    _ATEN._unique2,
}


class HostReadError(RuntimeError):
    """A function waits for its device, so that no graph of it can be recorded."""


class _HostReadCheck(TorchDispatchMode):
    """Raises HostReadError at an operator of this thread that reads values of ``device``, or copies to or from it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._type = device.type

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator, kwargs = func.overloadpacket, kwargs or {}
        used = {tensor.device.type for tensor in _tensors_in(args)}
        is_reading = operator in _READING or (operator is _ATEN.index and _has_mask(args[1]))
        if is_reading and self._type in used:
            raise HostReadError(f"{operator.__name__} waits for the device")
        if operator is _ATEN._to_copy and kwargs.get("device") is not None:
            used.add(kwargs["device"].type)
        is_copy = operator in (_ATEN._to_copy, _ATEN.copy_) and len(used) > 1
        is_upload = operator is _ATEN.lift_fresh and self._type != "cpu"  # how torch.tensor ends
        if (is_copy or is_upload) and self._type in used:
            raise HostReadError("a copy between the host and the device waits for it")
        return func(*args, **kwargs)


def check_host_reads(function: Callable[[], T], device: torch.device) -> T:
    """Call ``function``, which computes on ``device``, and return its result. Raises HostReadError where it waits.

    A capture that meets such an operator fails, which older releases of torch do not survive. In inference mode some
    operators would not be seen: it is left meanwhile.
    """
    with torch.inference_mode(False), torch.no_grad(), _HostReadCheck(device):
        return function()


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    """Return whether an index is a mask: how many values it selects is read back."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
