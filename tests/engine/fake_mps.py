"""A stand-in for MPS on the CPU: tensors that say they are there, on every thread, and refuse what MPS lacks.

What it refuses, by torch's sources (aten/src/ATen/native/mps/operations, test/test_mps.py) and issues:

- float64: the Metal framework has none. bfloat16: from macOS 14.
- ``grid_sampler_2d``: bicubic; and border padding, which torch has there from 2.13 (GridSampler.mm, issue 125098).
- ``adaptive_avg_pool2d``, which area resizing is too: sides that do not divide (Pooling.mm, issue 96056).
- ``_upsample_bicubic2d_aa``: taken for missing, as it has not been tried.
- Operators on tensors of two devices, and NumPy, as on every GPU.
- Operators on two threads at once, which abort the process there (issue 197805), or outside the device's lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from engine.image.ops import _cell_weights
from engine.runtime.device_lock import FairLock, device_lock
from engine.runtime.uploads import constant

MPS, CPU = torch.device("mps", 0), torch.device("cpu")
#: Operators that take tensors of two devices, and those that read on the host.
_BETWEEN_DEVICES = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_"}


class FakeMps:
    """One fake device. ``violations`` are what would have ended the process; ``operators`` counts what ran on it."""

    def __init__(self, macos: int = 14) -> None:
        for cached in (_cell_weights, constant):
            cached.cache_clear()  # on the device of the test before
        self.macos = macos
        self.violations: list[str] = []
        self.operators = 0
        self.threads: set[str] = set()
        self._storages: dict[int, StorageWeakRef] = {}
        self._inside: str | None = None
        self._lock = device_lock(MPS)
        assert isinstance(self._lock, FairLock)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device."""
        reference = self._storages.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def take(self, value: Any) -> Any:
        """Put the tensors in ``value`` on the device."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and not self.holds(tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage)
        return value

    def run(self, function: Any, arguments: Any, options: Any) -> Any:
        """Run an operator on tensors of the device."""
        self._check(function._schema.name, arguments, options)
        name = threading.current_thread().name
        if self._inside is not None:
            self.violations.append(f"{function} on {name} while {self._inside} runs one")
        if not self._lock.is_held:
            self.violations.append(f"{function} on {name} outside the lock")
        self._inside, self.operators = name, self.operators + 1
        self.threads.add(name)
        time.sleep(0)  # another thread may run now, as while a kernel is queued
        try:
            result = self.take(function(*arguments, **options))
        finally:
            self._inside = None
        self._check_types(function, result)
        return result

    def _check(self, name: str, arguments: Any, options: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        if name not in _BETWEEN_DEVICES and any(not self.holds(one) and one.dim() for one in tensors):
            raise RuntimeError(f"{name}: all tensors must be on one device, found mps:0 and cpu")
        self._check_types(name, tensors)
        if name in ("aten::grid_sampler", "aten::grid_sampler_2d"):
            mode, padding = arguments[2:4]
            if mode == 2 or padding == 1:
                raise RuntimeError("MPS: unsupported interpolation or padding mode")
        if name in ("aten::adaptive_avg_pool2d", "aten::_adaptive_avg_pool2d"):
            sides = zip(arguments[0].shape[-2:], arguments[1], strict=True)
            if any(side % cells and cells % side for side, cells in sides):
                raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
        if name == "aten::_upsample_bicubic2d_aa":
            raise NotImplementedError(f"{name} is not implemented for MPS")

    def _check_types(self, what: object, value: Any) -> None:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{what}: MPS has no float64")
            if isinstance(leaf, Tensor) and leaf.dtype is torch.bfloat16 and self.macos < 14:
                raise TypeError(f"{what}: bfloat16 needs macOS 14")

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Fake the device on the calling thread."""
        with ExitStack() as stack:
            stack.enter_context(_Operators(self))
            stack.enter_context(_Functions(self))
            yield


class _Operators(TorchDispatchMode):
    """Whatever an operator computes from tensors of the device is on the device."""

    def __init__(self, device: FakeMps) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) and self._device.holds(leaf) for leaf in tree_leaves((args, kwargs))):
            return self._device.run(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """``device=`` and ``.device`` mean the fake device; what is moved to or from it is copied."""

    def __init__(self, device: FakeMps) -> None:
        super().__init__()
        self._device = device
        self._attributes: dict[Any, Callable[[bool], Any]] = {
            Tensor.device.__get__: lambda on_mps: MPS if on_mps else CPU,
            Tensor.is_mps.__get__: lambda on_mps: on_mps,
            Tensor.is_cpu.__get__: lambda on_mps: not on_mps,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self._device
        source = args[0] if args and isinstance(args[0], Tensor) else None
        was_on_mps = source is not None and device.holds(source)
        if func in self._attributes and source is not None and source.device.type == "cpu":
            return self._attributes[func](was_on_mps)
        if was_on_mps and func is Tensor.numpy:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        target = self._target(func, args, kwargs)
        if target is None:
            return func(*args, **kwargs)
        arguments, options = tree_map(lambda leaf: CPU if _is_mps(leaf) else leaf, (args, kwargs))
        if source is None or func not in (Tensor.to, Tensor.cpu):  # a new tensor
            result = func(*arguments, **options)
            return device.take(result) if target == "mps" else result
        if (target == "mps") == was_on_mps:
            return func(*arguments, **options)
        return self._copy(func, arguments, options, target)

    def _target(self, func: Any, args: Any, kwargs: Any) -> str | None:
        """Return the device that a call names, None where it names none."""
        if func is torch._C._nn._parse_to:  # of Module.to, which moves each tensor then
            return None
        if func is Tensor.cpu:
            return "cpu"
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            return "mps" if self._device.holds(args[1]) else "cpu"
        if func is Tensor.new_tensor and "device" not in kwargs:
            return "mps" if self._device.holds(args[0]) else "cpu"
        named = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        named += [torch.device(kwargs["device"])] if isinstance(kwargs.get("device"), str) else []
        named += [torch.device(args[1])] if func is Tensor.to and len(args) > 1 and isinstance(args[1], str) else []
        return named[0].type if named else None

    def _copy(self, func: Any, arguments: Any, options: Any, target: str) -> Tensor:
        """Copy a tensor to or from the device: an operator on it."""
        if not device_lock(MPS).is_held:  # type: ignore[attr-defined]
            name = threading.current_thread().name
            self._device.violations.append(f"copy to {target} on {name} outside the lock")
        with _disable_current_modes():
            source = arguments[0]
            copied = func(*arguments, **options)
            if copied.untyped_storage()._cdata == source.untyped_storage()._cdata:
                copied = copied.clone()
        if target == "mps":
            self._device._check_types(func, copied)
            self._device.take(copied)
        return copied


def _is_mps(leaf: object) -> bool:
    return (isinstance(leaf, torch.device) and leaf.type == "mps") or (isinstance(leaf, str) and leaf == "mps")


def fake_on_all_threads(device: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake the device on every thread that starts from now on."""
    plain = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with device.modes():
            plain(thread)

    monkeypatch.setattr(threading.Thread, "run", run)
