"""The size that a config declares, found by building the module without memory, on the meta device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

#: Most tensors and modules that a model may declare; SDXL's U-Net, with the most of all, has 1,680 and 1,929.
MAX_TENSORS, MAX_MODULES = 10_000, 20_000
#: Values that a config may declare beyond twice those in the files: tied weights count twice, tables are not saved.
SPARE_ELEMENTS = 16 << 20


def check_declared(build: Callable[[], object], stored: int) -> None:
    """Call ``build`` without memory for tensors. Raises ValueError if it declares much more than ``stored`` values.

    A library would allocate what is declared before it compares it with the files.
    """
    limit = 2 * stored + SPARE_ELEMENTS
    with _limited(limit), torch.device("meta"), _CreationLimit(2 * limit):
        build()


class _CreationLimit(TorchDispatchMode):
    """Limits the elements of all tensors that are created, also of tables that no module registers."""

    def __init__(self, max_elements: int) -> None:
        super().__init__()
        self._left = max_elements

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs and not any(isinstance(argument, Tensor) for argument in args):
            # Measured without memory first: some tables are created on the CPU whatever the default device is.
            self._left -= func(*args, **{**kwargs, "device": torch.device("meta"), "pin_memory": None}).numel()
            if self._left < 0:
                raise ValueError("its config declares a far larger model than its files hold")
        return func(*args, **kwargs)


@contextmanager
def _limited(max_elements: int) -> Iterator[None]:
    """Limit what modules made on this thread may register."""
    thread, elements, tensors, modules = threading.get_ident(), 0, 0, 0

    def count_tensor(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal elements, tensors
        if tensor is None or threading.get_ident() != thread:
            return
        elements, tensors = elements + tensor.numel(), tensors + 1
        if elements > max_elements or tensors > MAX_TENSORS:
            raise ValueError("its config declares a far larger model than its files hold")

    def count_module(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal modules
        if threading.get_ident() != thread:
            return
        modules += 1
        if modules > MAX_MODULES:
            raise ValueError("its config declares too many layers")

    handles = [
        register_module_parameter_registration_hook(count_tensor),
        register_module_buffer_registration_hook(count_tensor),
        register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
