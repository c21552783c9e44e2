"""Lanes on a GPU: the next frame is encoded, and the last one decoded and copied out, beside the denoiser of the one between.

Each lane is a CUDA stream; what one needs of another it waits for on the device, never on the host. Elsewhere everything is done in order
where it is called. Not run on a GPU yet: there was none where this was written.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.shared.frame import Frame


class NotFinite(ArithmeticError):
    """The model's output holds infinities or NaN."""

    def __init__(self) -> None:
        super().__init__("the model gave no picture, but numbers that are none (NaN)")


class CudaStreams:
    """The two lanes of a device beside the current stream, on which it denoises. All Streams there share them, as they share models."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda = device.type == "cuda"
        self._in: torch.cuda.Stream | None = torch.cuda.Stream(device) if cuda else None
        self._out: torch.cuda.Stream | None = torch.cuda.Stream(device) if cuda else None

    def entering(
        self, after_main: bool = False, after_output: bool = False
    ) -> contextlib.AbstractContextManager[object]:
        """On the lane of the inputs; once all that is under way is done, or the last output, where what is computed depends on those."""
        if self._in is None:
            return contextlib.nullcontext()
        if after_main:
            self._in.wait_stream(torch.cuda.current_stream(self._device))
        if self._out is not None and (after_main or after_output):
            self._in.wait_stream(self._out)
        return torch.cuda.stream(self._in)

    def entered(self, *tensors: Tensor | None) -> None:
        """The denoiser waits for that lane; ``tensors`` of it are not overwritten before it is done with them."""
        if self._in is None:
            return
        here = torch.cuda.current_stream(self._device)
        here.wait_stream(self._in)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(here)

    def leaving(self) -> contextlib.AbstractContextManager[object]:
        """On the lane of the outputs, after what the denoiser has been given until now."""
        if self._out is None:
            return contextlib.nullcontext()
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._out)


@functools.cache
def cuda_streams_of(device: torch.device) -> CudaStreams:
    """The lanes of ``device``."""
    return CudaStreams(device)


class PendingOutput:
    """Frames that a tick has finished, perhaps still on their way out of the device; none while the batch fills.

    ``pixels`` are (B, H, W, 4) uint8, made on the lane of the outputs, ``total`` the sum of all that the model gave, which tells if all
    of that are numbers.
    Each of ``frames`` comes with the number of its snapshot. What all this was made of is ``kept`` until it is out.
    """

    def __init__(self, frames: Sequence[tuple[Frame, int]], pixels: Tensor, total: Tensor, kept: object = None) -> None:
        self._frames, self._kept = frames, kept
        self._event: torch.cuda.Event | None = None
        if pixels.device.type == "cuda":
            pixels, total = (
                torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in (pixels, total)
            )
            self._event = torch.cuda.Event()
            self._event.record()
        self._pixels, self._total = pixels, total

    @property
    def ready(self) -> bool:
        """Whether ``frames`` need not wait."""
        return self._event is None or self._event.query()

    def frames(self) -> list[Frame]:
        """The frames, once they are out. Raises NotFinite."""
        if self._event is not None:
            self._event.synchronize()
        self._kept = None
        if not math.isfinite(self._total):
            raise NotFinite
        pictures = self._pixels.cpu().numpy()
        return [
            Frame(p, f.sequence, f.captured_at, number) for p, (f, number) in zip(pictures, self._frames, strict=True)
        ]
