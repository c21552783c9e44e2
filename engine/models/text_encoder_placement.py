"""Large text encoders leave a GPU that is short of memory: they work for a moment at each new prompt.

On the CPU they still encode, in seconds. Nothing of this happens off CUDA. Not run on a GPU yet: none was available
where this was written.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime.device_memory import RESERVE_BYTES, is_short, release_cache

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
#: Weights from which an encoder is large, in bytes: T5-XXL has 9.5 GB, CLIP's largest 1.4 GB, SD's 0.25 GB.
LARGE_BYTES = 1 << 30


class PlacedEncoder:
    """Moves ``module``, for inference, between ``device`` and the CPU, around its own ``forward``, which it replaces.

    Its inputs may be on any device. Its outputs are on ``device``.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module, self._device, self._forward = module.requires_grad_(False).eval(), device, module.forward
        self._size = module_bytes(module)
        self._lock = threading.RLock()

        @functools.wraps(self._forward)
        def forward(*arguments: Any, **options: Any) -> Any:
            return self._run(*arguments, **options)

        module.forward = forward
        self._fetch()

    def make_room(self, needed_bytes: float = RESERVE_BYTES) -> None:
        """Move to the CPU where the device has less than ``needed_bytes`` free."""
        with self._lock:
            if self._where().type != "cpu" and is_short(self._device, needed_bytes):
                self._module.to(CPU)
                release_cache(self._device, needed_bytes)
                log.info("a text encoder of %.1f GiB waits on the CPU", self._size / 2**30)

    def _fetch(self) -> None:
        """Move to the device if that leaves its reserve free."""
        if self._where().type == "cpu" and not is_short(self._device, self._size + RESERVE_BYTES):
            self._module.to(self._device)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self._fetch()
            where = self._where()
            output = self._forward(*_move(arguments, where), **_move(options, where))
            result = _move(output, self._device)
            self.make_room()
            return result

    def _where(self) -> torch.device:
        return next(self._module.parameters()).device


def may_leave(module: nn.Module, device: torch.device) -> bool:
    """Return whether an encoder is large and ``device`` a CUDA one: then it is a ``PlacedEncoder``."""
    return device.type == "cuda" and module_bytes(module) >= LARGE_BYTES


def module_bytes(module: nn.Module) -> int:
    """Return the size of a module's weights."""
    return sum(parameter.nbytes for parameter in module.parameters())


def _move(value: Any, device: torch.device) -> Any:
    """Return ``value`` with its tensors on ``device``; a library's output keeps its class."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        converted = {key: _move(item, device) for key, item in value.items()}
        return converted if type(value) is dict else type(value)(**converted)
    if isinstance(value, list | tuple):
        return type(value)(_move(item, device) for item in value)
    return value
