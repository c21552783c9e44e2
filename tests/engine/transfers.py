"""Copies between the host and a device, counted on torch's ``meta`` device, which computes shapes alone."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
_aten = torch.ops.aten
#: Operations whose result's size or value the host waits for.
_READS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.bincount.default,
    _aten.repeat_interleave.Tensor,
    _aten._unique2.default,
    _aten.equal.default,
}
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)


class Transfers(TorchDispatchMode):
    """Counts what crosses between the host and the meta device while it is entered, each with the line that did it.

    A read of a number gives ``answer``, and one of a tensor gives zeros, so that the program runs on.
    """

    def __init__(self, answer: float = 0.5) -> None:
        super().__init__()
        self.uploads: list[str] = []
        self.reads: list[str] = []
        self._answer = answer
        self._constructors = _Constructors(self.uploads)

    def __enter__(self) -> Transfers:
        self._constructors.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._constructors.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._dispatch(func, args, kwargs or {})

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        if _can_decompose(func):  # in inference mode a mode sees functions that are made of others
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that is not made of others."""
        tensors = [one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.is_meta for one in tensors):
            if func in _READS or (func in (_aten.index.Tensor, _aten.index_put_.default) and _by_mask(args[1])):
                self.reads.append(f"{func} {line_of_engine()}")
                if func is _aten._local_scalar_dense.default:
                    return args[0].dtype.is_floating_point and self._answer
            if func is _aten._to_copy.default and torch.device(kwargs.get("device") or META).type == "cpu":
                self.reads.append(f"{func} {line_of_engine()}")
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is _aten._to_copy.default and tensors[0].device.type == "cpu" and _is_meta(kwargs.get("device")):
            self.uploads.append(f"{func} {tuple(tensors[0].shape)} {line_of_engine()}")
        elif func is _aten.copy_.default and tensors[0].is_meta and tensors[1].device.type == "cpu":
            self.uploads.append(f"{func} {tuple(tensors[1].shape)} {line_of_engine()}")
        return func(*args, **kwargs)


class _Constructors(TorchFunctionMode):
    """Sees tensors that are made of Python numbers on the device: a dispatch mode sees no copy there."""

    def __init__(self, uploads: list[str]) -> None:
        super().__init__()
        self._uploads = uploads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        from_numbers = func in _FROM_HOST and _is_meta(kwargs.get("device"))
        if from_numbers or (func is Tensor.new_tensor and result.is_meta):
            self._uploads.append(f"{getattr(func, '__name__', func)} {tuple(result.shape)} {line_of_engine()}")
        return result


@functools.cache
def _can_decompose(func: Any) -> bool:
    return bool(func._can_decompose())


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _by_mask(indices: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices)


def line_of_engine() -> str:
    """Return the line of the engine, or of a library under it, that is running."""
    frame: Any = sys._getframe(2)
    lines = []
    while frame is not None and len(lines) < 3:
        name = frame.f_code.co_filename
        if "/torch/" not in name and not name.endswith("transfers.py"):
            lines.append(f"{Path(name).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines)
