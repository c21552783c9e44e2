"""Uploads: values of the host on the device, without a wait, and those of a tick in one copy.

A copy from pageable memory waits until everything that its CUDA stream has queued is done. A copy from pinned memory
waits for nothing. The frame loop uploads through this module alone. Not run on a GPU yet.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Alignment of a tensor in a packet, in bytes: that of every dtype and of vector loads.
ALIGNMENT_BYTES = 256
#: Distinct constants that are kept on their devices.
MAX_CONSTANTS = 256


def upload(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``values`` on ``device``: a tensor of the CPU, or numbers, nested or not, as float32.

    On CUDA the copy is pinned and queued on the current stream. On a CPU and on MPS it is a plain one.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype or torch.float32)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=_is_queued(device))


def upload_packed(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of the CPU on ``device``, all in one copy. They share its memory there.

    On a CPU they are returned as they are.
    """
    if device.type == "cpu":
        return list(tensors)
    packet = pack(tensors, is_pinned=device.type == "cuda")
    return unpack(packet.to(device, non_blocking=_is_queued(device)), tensors)


def _is_queued(device: torch.device) -> bool:
    """Return whether a copy to ``device`` may be queued: MPS could read the host's memory after it is freed."""
    return device.type not in ("cpu", "mps")


def pack(tensors: Sequence[Tensor], is_pinned: bool = False) -> Tensor:
    """Return a packet, (bytes,) uint8 on the CPU, that holds the tensors one after the other."""
    packet = torch.empty(_offsets(tensors)[-1], dtype=torch.uint8, pin_memory=is_pinned)
    for tensor, part in zip(tensors, unpack(packet, tensors), strict=True):
        part.copy_(tensor)
    return packet


def unpack(packet: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return what ``pack`` made of the tensors ``like``, as parts of ``packet`` with their dtypes and shapes."""
    return [
        packet[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for offset, tensor in zip(_offsets(like), like, strict=False)
    ]


def _offsets(tensors: Sequence[Tensor]) -> list[int]:
    """Return where each tensor begins in a packet, in bytes, and where the packet ends."""
    sizes = (-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in tensors)
    return list(itertools.accumulate(sizes, initial=0))


@functools.lru_cache(MAX_CONSTANTS)
def constant(values: Hashable, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return fixed numbers, nested tuples of them, on ``device``: uploaded at the first call. Never write to it.

    The first call waits for the copy, so that every CUDA stream may read the result from then on.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype).to(device)


class UploadMemo:
    """Values of the host on ``device``, by key: each is uploaded once as long as it is used.

    ``stage`` uploads what a tick needs in one copy. ``record`` is called with each stored tensor: it marks a tensor as
    used by other CUDA streams than the current one.
    """

    def __init__(
        self, device: torch.device, record: Callable[[Tensor], object] = lambda _tensor: None, max_entries: int = 64
    ) -> None:
        self.device, self._record, self._max_entries = device, record, max_entries
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def stage(self, tensors: Sequence[Tensor], values: Mapping[Hashable, Callable[[], Tensor]]) -> list[Tensor]:
        """Upload ``tensors`` for this tick, and those ``values`` that are not stored, in one copy.

        The values, tensors of the CPU, are stored for ``get``. On a CPU nothing is stored ahead.
        """
        if self.device.type == "cpu":
            return list(tensors)
        missing = {key: compute() for key, compute in values.items() if key not in self._entries}
        if not tensors and not missing:
            return []
        sent = upload_packed([*tensors, *missing.values()], self.device)
        for (key, value), part in zip(missing.items(), sent[len(tensors) :], strict=True):
            self._store(key, part.clone(memory_format=_layout(value)))  # else it would keep the whole packet
        return sent[: len(tensors)]

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the value of ``key``. One that was not staged is uploaded now, and waited for."""
        entry = self._entries.get(key)
        if entry is None:
            value = compute()
            return self._store(key, value.to(self.device, memory_format=_layout(value)))
        self._entries.move_to_end(key)
        return entry

    def _store(self, key: Hashable, tensor: Tensor) -> Tensor:
        self._record(tensor)
        self._entries[key] = tensor
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return tensor


def _layout(tensor: Tensor) -> torch.memory_format:
    """Return the memory format of a stored tensor: channels last for latents."""
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
