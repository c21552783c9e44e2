"""CUDA graphs: capture a compiled function once per batch size and replay it, so no kernel launch waits for the host.

Not run on a GPU yet: none was available where this was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Held while a graph is captured: two captures at once invalidate each other.
CAPTURE_LOCK = threading.Lock()
#: Runs before a capture, in which libraries do their one-time set-up.
WARMUP_RUNS = 2


class CapturedGraph:
    """A CUDA graph and its fixed input and output buffers; ``sources`` are the tensors last copied into the inputs."""

    def __init__(self, function: Callable[[Sequence[Tensor]], list[Tensor]], tensors: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.sources: list[Tensor | None] = [None] * len(tensors)
        warmup_stream = torch.cuda.Stream()
        warmup_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warmup_stream):
            for _ in range(WARMUP_RUNS):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(warmup_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(self.inputs)


class CudaGraphRunner:
    """``function`` replayed from CUDA graphs. Outputs are copied, as the next replay overwrites the graph's buffers.

    A tensor that is the same object as in the previous call is not copied in again: inputs are never changed in place.
    """

    def __init__(self, function: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        self._function = function
        self._captured: dict[tuple[int, ...], CapturedGraph] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        key = tuple(len(tensor) if tensor.dim() else 0 for tensor in tensors)
        if key not in self._captured:
            with CAPTURE_LOCK:
                self._captured[key] = CapturedGraph(self._function, tensors)
        captured = self._captured[key]
        for i, tensor in enumerate(tensors):
            if captured.sources[i] is not tensor:
                captured.inputs[i].copy_(tensor, non_blocking=True)
                captured.sources[i] = tensor
        captured.graph.replay()
        return [output.clone() for output in captured.outputs]
