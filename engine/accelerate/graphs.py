"""CUDA graphs: a compiled part recorded once for each number of rows and replayed, so that no kernel waits for the host."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.accelerate.part import Run, put_together, taken_apart

#: Held by whoever records: two recordings at once spoil each other.
ONE_AT_A_TIME = threading.Lock()
#: Runs before recording, for what libraries set up at their first.
WARM = 2


class Graphed:
    """A run with inputs and outputs in fixed places; what it gives is copied out of them, for the next call overwrites it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._kept: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        key = tuple(len(tensor) if tensor.dim() else 0 for tensor in tensors)
        if key not in self._kept:
            with ONE_AT_A_TIME:
                self._kept[key] = self._recorded(tensors)
        graph, inputs, outputs = self._kept[key]
        for place, tensor in zip(inputs, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        made: list[Tensor] = []
        form = taken_apart(outputs, made)
        return put_together(form, iter([tensor.clone() for tensor in made]))

    def _recorded(self, tensors: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        inputs = [tensor.clone() for tensor in tensors]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._run(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._run(inputs)
        return graph, inputs, outputs
