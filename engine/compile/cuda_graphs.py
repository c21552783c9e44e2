"""CUDA graphs: a compiled part recorded once for each number of rows and replayed, so that no kernel waits for the host.

Not run yet: there was no GPU where this was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Held by whoever records: two recordings at once spoil each other.
ONE_AT_A_TIME = threading.Lock()
#: Runs before recording, for what libraries set up at their first.
WARM = 2


class CapturedGraph:
    """A graph with its inputs and outputs in fixed places. ``given`` is what was last copied in."""

    def __init__(self, run: Callable[[Sequence[Tensor]], list[Tensor]], tensors: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.given: list[Tensor | None] = [None] * len(tensors)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                run(self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = run(self.inputs)


class CudaGraphRunner:
    """A run, recorded. What it gives is copied out of its fixed places, for the next call overwrites them.

    A tensor that is the same object as at the call before is not copied in again: nobody changes one in place.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        self._run = run
        self._kept: dict[tuple[int, ...], CapturedGraph] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        key = tuple(len(tensor) if tensor.dim() else 0 for tensor in tensors)
        if key not in self._kept:
            with ONE_AT_A_TIME:
                self._kept[key] = CapturedGraph(self._run, tensors)
        recording = self._kept[key]
        for i, tensor in enumerate(tensors):
            if recording.given[i] is not tensor:
                recording.inputs[i].copy_(tensor, non_blocking=True)
                recording.given[i] = tensor
        recording.graph.replay()
        return [output.clone() for output in recording.outputs]
