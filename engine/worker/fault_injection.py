"""Fault injection: a decoder that fails as models and devices do. Off unless ``EngineOptions.fault_injection`` is set.

``phosphene stress faults`` sets it. It then names the fault by the parameter ``/hook/fault/kind``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.diffusion.stream import Stream
from engine.shared.fault_parameter import DEVICE_LOST, FAULT_PARAMETER, NAN, NO_FAULT, OUT_OF_MEMORY


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
