"""Fault injection: a decoder that fails as models and devices do, and values that the engine cannot apply.

Off unless ``EngineOptions.fault_injection`` is set, as ``phosphene stress faults`` and tests do. The parameter
``/hook/fault/kind`` then names the fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from engine.diffusion.stream import Stream
from engine.shared.fault_parameter import (
    CHANGE_RAISES,
    DEVICE_LOST,
    FAULT_PARAMETER,
    NAN,
    NO_FAULT,
    OUT_OF_MEMORY,
    START_EXITS,
    START_RAISES,
)
from engine.shared.snapshot import Snapshot

#: Exit code of a process that ``start exits`` ends, as a crash would.
EXIT_CODE = 70


class FaultyDecoder:
    """Decodes (B, channels, h, w) latents to (B, 3, H, W) images with ``decode``, or fails as ``fault()`` says."""

    def __init__(self, decode: Callable[[Tensor], Tensor], fault: Callable[[], object]) -> None:
        self._decode, self._fault = decode, fault

    def __call__(self, latents: Tensor) -> Tensor:
        fault = self._fault()
        if fault == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 2.00 GiB (injected)")
        if fault == DEVICE_LOST:
            raise RuntimeError("CUDA error: unspecified launch failure (injected)")
        images = self._decode(latents)
        return images * float("nan") if fault == NAN else images


def inject_faults(stream: Stream) -> None:
    """Make the decoder of ``stream`` fail as its current snapshot says."""
    model = stream.model
    model.decode = FaultyDecoder(
        model.codec.decode,  # not model.decode, which an earlier stream of this model may have wrapped already
        lambda: stream.snapshot.get(FAULT_PARAMETER.name, NO_FAULT),
    )


def fail_start(snapshot: Snapshot) -> None:
    """Fail where the engine begins with a value that says so. Raises RuntimeError, or ends the process."""
    fault = snapshot.get(FAULT_PARAMETER.name, NO_FAULT)
    if fault == START_EXITS:
        os._exit(EXIT_CODE)
    if fault == START_RAISES:
        raise RuntimeError("this value cannot be begun with (injected)")


def fail_change(snapshot: Snapshot) -> None:
    """Raise RuntimeError where a change says so."""
    if snapshot.get(FAULT_PARAMETER.name, NO_FAULT) == CHANGE_RAISES:
        raise RuntimeError("this value cannot be applied (injected)")
