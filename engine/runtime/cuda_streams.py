"""CUDA streams of the frame loop: encode the next frame and decode the last one while the denoiser runs.

One stream waits for another on the device, never on the host. On other devices every operation runs in order, where it
is called. Not run on a GPU yet: none was available where this was written.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.runtime.device_lock import device_lock
from engine.shared.frame import Frame

#: Parts of a model whose output may not be finite.
AUTOENCODER, DENOISER = "autoencoder", "denoiser"
#: Remedy for a denoiser's NaN, by its type: float16 has too short a range, bfloat16 few digits.
_REMEDIES = {torch.float16: "; try /dtype bfloat16", torch.bfloat16: "; try /dtype float32"}
#: Priority of the frame loop's stream: CUDA's smaller numbers go first.
HIGH_PRIORITY = -1


class NotFinite(ArithmeticError):
    """The output of a model's ``part``, which computes in ``dtype``, contains NaN or infinity."""

    def __init__(self, part: str = "model", dtype: torch.dtype | None = None) -> None:
        remedy = _REMEDIES.get(dtype, "") if dtype and part == DENOISER else ""
        super().__init__(f"the {part} output contains NaN or infinity{remedy}")
        self.part = part


@dataclass(frozen=True)
class OutputSums:
    """Sums of all values of a tick's encoded and denoised latents and of its decoded pictures, (3,), in this order.

    A sum is finite only if all values are. ``dtype`` is the denoiser's.
    """

    values: Tensor
    dtype: torch.dtype

    def check(self) -> None:
        """Raise NotFinite for the first part whose output is not finite: the later ones follow from it."""
        for part, value in zip((AUTOENCODER, DENOISER, AUTOENCODER), self.values.tolist(), strict=True):
            if not math.isfinite(value):
                raise NotFinite(part, self.dtype)


class CudaStreams:
    """The input and output streams of a device; the denoiser runs on the current stream, the main one.

    All diffusion streams on a device share them, as they share models.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._input: torch.cuda.Stream | None = torch.cuda.Stream(device) if is_cuda else None
        self._output: torch.cuda.Stream | None = torch.cuda.Stream(device) if is_cuda else None
        self._loop: torch.cuda.Stream | None = None
        self._current = threading.local()  # a model is warmed up on another thread

    def enter_main(self) -> None:
        """Run this thread's further work on the frame loop's stream.

        It has priority, and unlike the default stream waits for no other thread's work. Call it before anything is
        allocated.
        """
        if self._input is not None:
            self._loop = self._loop or torch.cuda.Stream(self._device, priority=HIGH_PRIORITY)
            torch.cuda.set_stream(self._loop)

    def input_stream(
        self, after_main: bool = False, after_output: bool = False
    ) -> contextlib.AbstractContextManager[object]:
        """Enter the input stream.

        With ``after_main`` it first waits for all work in progress, with ``after_output`` for the output stream:
        set them where the input depends on those results.
        """
        if self._input is None:
            return contextlib.nullcontext()
        self._current.main = torch.cuda.current_stream(self._device)
        if after_main:
            self._input.wait_stream(self._current.main)
        if self._output is not None and (after_main or after_output):
            self._input.wait_stream(self._output)
        return torch.cuda.stream(self._input)

    def sync_input(self, *tensors: Tensor | None) -> None:
        """Make the current stream wait for the input stream, and ``record`` what it hands over."""
        if self._input is None:
            return
        torch.cuda.current_stream(self._device).wait_stream(self._input)
        self.record(*tensors)

    def record(self, *tensors: Tensor | None) -> None:
        """Reuse the memory of ``tensors``, once they are freed, only after what all these streams have queued by then.

        For tensors of one stream that another one uses, unless a ``PendingOutput`` keeps them until its frames are out.
        """
        recorded = [tensor for tensor in tensors if tensor is not None]
        if self._input is None or self._output is None or not recorded:
            return
        loop = self._loop or torch.cuda.default_stream(self._device)
        for stream in (self._input, self._output, loop, getattr(self._current, "main", loop)):
            for tensor in recorded:
                tensor.record_stream(stream)

    def synchronize(self) -> None:
        """Wait on the host until all these streams and the current one are idle."""
        if self._input is not None and self._output is not None:
            for stream in (self._input, torch.cuda.current_stream(self._device), self._output):
                stream.synchronize()

    def output_stream(self) -> contextlib.AbstractContextManager[object]:
        """Enter the output stream, after the work that the current stream has queued so far."""
        if self._output is None:
            return contextlib.nullcontext()
        self._output.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._output)


@functools.cache
def cuda_streams_of(device: torch.device) -> CudaStreams:
    """Return the streams that everything on ``device`` shares."""
    return CudaStreams(device)


class PendingOutput:
    """The frames that a tick finished, possibly still being copied off the device; none while the batch fills.

    ``pixels`` are (B, H, W, 4) uint8, computed on the output stream, and so are the ``sums`` that show whether the
    model's output is finite. ``frames`` are the input frames, each with the number of its snapshot. ``inputs`` are the
    tensors that the output is computed from: they stay allocated until the copy is done. ``checks`` are booleans () on
    the device; ``on_checked`` is called with their values, unless the model's output is not finite.
    """

    def __init__(
        self,
        frames: Sequence[tuple[Frame, int]],
        pixels: Tensor,
        sums: OutputSums,
        inputs: object = None,
        checks: Sequence[Tensor] = (),
        on_checked: Callable[[Sequence[bool]], object] = lambda _checks: None,
    ) -> None:
        self._frames, self._inputs, self._on_checked = frames, (inputs, checks), on_checked
        self._event: torch.cuda.Event | None = None
        numbers = sums.values
        if checks:
            numbers = torch.cat([numbers, torch.stack(list(checks)).to(numbers.dtype)])
        if pixels.device.type == "cuda":
            pixels, numbers = (
                torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True)
                for t in (pixels, numbers)
            )
            self._event = torch.cuda.Event()
            self._event.record()
        self._pixels, self._numbers, self._dtype = pixels, numbers, sums.dtype

    def done(self) -> bool:
        """Return whether ``result`` would return without waiting."""
        return self._event is None or self._event.query()

    def result(self) -> list[Frame]:
        """Wait for the frames and return them. Raises NotFinite."""
        if self._event is not None:
            self._event.synchronize()
        self._inputs = (None, ())
        with device_lock(self._pixels.device):
            numbers = self._numbers.cpu()
            OutputSums(numbers[:3], self._dtype).check()
            self._on_checked([bool(number) for number in numbers[3:].tolist()])
            images = self._pixels.cpu().numpy()
        return [
            Frame(image, frame.sequence, frame.captured_at, number)
            for image, (frame, number) in zip(images, self._frames, strict=True)
        ]
