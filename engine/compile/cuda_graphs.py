"""CUDA graphs: record a function once for each number of rows, ahead of its use, and replay it in the frame loop.

A replay launches all kernels of a call at once; called from Python, each of them waits for the interpreter. Nothing is
recorded in the frame loop. The calls of CUDA are in ``GraphRuntime``, which the tests implement on the CPU.

Not run on a GPU yet: none was available where this was written.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.compile.dispatch import TreeSpec, tree_flatten, tree_unflatten
from engine.compile.host_reads import check_host_reads
from engine.runtime.device import CAPTURE_LOCK
from engine.runtime.device_memory import release_cache

#: Runs before a capture, in which libraries do their one-time set-up and choose their algorithms.
WARMUP_RUNS = 2
#: Priority of the streams that graphs are recorded on: no other part of the engine uses it.
GRAPH_PRIORITY = -2
#: Streams that are tried until one is used by no other graphs: torch hands out 32 for each priority, in turn.
STREAM_ATTEMPTS = 33
#: The first release of torch in which a capture that fails leaves the allocator usable (pytorch/pytorch#180395).
FIRST_RELEASE_SURVIVING_FAILURE = (2, 13)

Function = Callable[[Sequence[Tensor]], list[Tensor]]


class CaptureFailed(RuntimeError):
    """CUDA could not record a function."""


class Graph(Protocol):
    """A CUDA graph."""

    def begin(self, pool: Any) -> None:
        """Record from here on what this thread launches, with the memory of ``pool``."""

    def end(self) -> None:
        """End the recording."""

    def replay(self) -> None:
        """Launch what was recorded, on the current stream."""


class GraphRuntime(Protocol):
    """What recording needs of CUDA. ``survives_failure``: whether the process is usable after a failed capture."""

    survives_failure: bool

    def new_stream(self) -> Any:
        """Return a stream that no living graphs use."""

    def new_pool(self) -> Any:
        """Return a handle of memory that graphs may share."""

    def new_graph(self) -> Graph:
        """Return an empty graph."""

    def current_stream(self) -> Any:
        """Return this thread's current stream."""

    def use_stream(self, stream: Any) -> AbstractContextManager[object]:
        """Make ``stream`` this thread's current stream inside the context."""

    def is_same(self, stream: Any, other: Any) -> bool:
        """Return whether both are one stream."""

    def wait(self, stream: Any, earlier: Any) -> None:
        """Let ``stream`` wait, on the device, for the work of ``earlier`` so far."""

    def retain(self, tensors: Sequence[Tensor], stream: Any) -> None:
        """Let the memory of ``tensors``, once freed, be reused only after the work of ``stream``."""

    def make_room(self) -> None:
        """Return cached memory to the device where little is free: a capture cannot do that itself."""


class CudaGraph:
    """A graph of torch. It does without ``torch.cuda.graph``.

    That context waits for the device, empties the allocator's cache, which the running stream then fills again, and
    leaves its stream current where the capture fails.
    """

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def begin(self, pool: Any) -> None:
        """Begin the capture. Other threads may allocate meanwhile."""
        self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")

    def end(self) -> None:
        """End the capture."""
        self._graph.capture_end()

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


class CudaGraphRuntime:
    """torch's CUDA, or its ROCm, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self.survives_failure = torch_release() >= FIRST_RELEASE_SURVIVING_FAILURE

    def new_stream(self) -> Any:
        """Return a stream that no living graphs use.

        cuBLAS has one workspace for each stream, which the graphs contain: replays of two parts at once must not share
        it. The priority is another set of torch's streams than those of the frame loop.
        """
        used = {stream.cuda_stream for stream in self._streams}
        for _ in range(STREAM_ATTEMPTS):
            stream = torch.cuda.Stream(self._device, priority=GRAPH_PRIORITY)
            if stream.cuda_stream not in used:
                break
        self._streams.add(stream)
        return stream

    def new_pool(self) -> Any:
        """Return a handle of memory that graphs may share."""
        return torch.cuda.graph_pool_handle()

    def new_graph(self) -> Graph:
        """Return an empty graph."""
        return CudaGraph()

    def current_stream(self) -> Any:
        """Return this thread's current stream."""
        return torch.cuda.current_stream(self._device)

    def use_stream(self, stream: Any) -> AbstractContextManager[object]:
        """Make ``stream`` this thread's current stream inside the context."""
        return torch.cuda.stream(stream)

    def is_same(self, stream: Any, other: Any) -> bool:
        """Return whether both are one stream."""
        return bool(stream.cuda_stream == other.cuda_stream)

    def wait(self, stream: Any, earlier: Any) -> None:
        """Let ``stream`` wait, on the device, for the work of ``earlier`` so far."""
        stream.wait_stream(earlier)

    def retain(self, tensors: Sequence[Tensor], stream: Any) -> None:
        """Let the memory of ``tensors``, once freed, be reused only after the work of ``stream``."""
        for tensor in tensors:
            tensor.record_stream(stream)

    def make_room(self) -> None:
        """Return cached memory to the device where little is free: a capture cannot do that itself."""
        release_cache(self._device)


def open_graph_runtime(device: torch.device) -> GraphRuntime | None:
    """Return what records graphs on ``device``; None where there are none: they need CUDA or ROCm."""
    return CudaGraphRuntime(device) if device.type == "cuda" else None


def torch_release() -> tuple[int, int]:
    """Return major and minor version of torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


class Recording:
    """A graph with its fixed inputs and outputs, for calls of ``rows`` rows.

    Outputs are copied at each replay, as the next one overwrites them. A condition that is the same object as at the
    replay before is not copied in again: conditions are never changed in place. Latents and images, that is the first
    tensor and those of four dimensions, are always copied. ``is_compiled``: the function has no
    Python that could read values from its device.
    """

    def __init__(
        self,
        function: Function,
        tensors: Sequence[Tensor],
        runtime: GraphRuntime,
        pool: Any,
        is_compiled: bool = False,
    ) -> None:
        self.rows = len(tensors[0])
        self.inputs = [tensor.clone() for tensor in tensors]
        self._sources: list[Tensor | None] = [None] * len(tensors)
        if not is_compiled:
            check_host_reads(lambda: function(self.inputs), tensors[0].device)
        for _ in range(WARMUP_RUNS):
            function(self.inputs)
        runtime.make_room()
        self._graph = runtime.new_graph()
        try:
            self._outputs = _capture(self._graph, lambda: function(self.inputs), pool)
        except Exception as error:
            raise CaptureFailed(f"no CUDA graph of {self.rows} rows: {error}") from error

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the graph on ``tensors``, on the current stream."""
        for i, tensor in enumerate(tensors):
            is_condition = i > 0 and tensor.dim() != 4
            if not is_condition or self._sources[i] is not tensor:
                self.inputs[i].copy_(tensor, non_blocking=True)
                self._sources[i] = tensor if is_condition else None
        self._graph.replay()
        return [output.clone() for output in self._outputs]


def _capture(graph: Graph, function: Callable[[], list[Tensor]], pool: Any) -> list[Tensor]:
    with CAPTURE_LOCK:
        graph.begin(pool)
        try:
            outputs = function()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error says what is wrong
                graph.end()
            raise
        graph.end()
    return outputs


class GraphedFunction:
    """``function`` replayed from CUDA graphs, one for each number of rows of its first tensor.

    Other numbers of rows run the function itself. All graphs are recorded on one stream and share one memory pool, and
    they are freed together. So their replays never overlap: one waits for the other, threads in ``_lock`` and streams
    on the device. ``is_compiled`` is as in ``Recording``.
    """

    def __init__(self, function: Function, runtime: GraphRuntime, is_compiled: bool = False) -> None:
        self._function, self._runtime, self._is_compiled = function, runtime, is_compiled
        self._stream, self._pool = runtime.new_stream(), runtime.new_pool()
        self._recordings: dict[int, Recording] = {}
        self._lock = threading.Lock()
        self._last_stream: Any = None

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        recording = self._recordings.get(len(tensors[0]))
        return self._function(tensors) if recording is None else self.replay(recording, tensors)

    def is_recorded(self, rows: int) -> bool:
        """Return whether calls of so many rows are replayed."""
        return rows in self._recordings

    @torch.inference_mode(False)  # its inputs are copied into outside inference mode too
    @torch.no_grad()
    def record(self, tensors: Sequence[Tensor]) -> Recording:
        """Record a call, which serves nothing yet. Raises CaptureFailed, HostReadError and what the function does."""
        runtime, caller = self._runtime, self._runtime.current_stream()
        runtime.wait(self._stream, caller)
        with runtime.use_stream(self._stream):  # left in every case, also when the capture fails
            recording = Recording(self._function, tensors, runtime, self._pool, self._is_compiled)
        runtime.wait(caller, self._stream)
        return recording

    def publish(self, recording: Recording) -> None:
        """Let the recording serve all calls of as many rows."""
        self._recordings[recording.rows] = recording

    def replay(self, recording: Recording, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the recording, after the replay before, on whatever stream that was."""
        with self._lock:
            stream, last = self._runtime.current_stream(), self._last_stream
            if last is None or not self._runtime.is_same(stream, last):
                if last is not None:
                    self._runtime.wait(stream, last)
                for one in (recording, *list(self._recordings.values())):
                    self._runtime.retain(one.inputs, stream)
                self._last_stream = stream
            return recording.replay(tensors)


class Replay:
    """A recording of a ``GraphedModule`` as a function of tensors."""

    def __init__(self, module: GraphedModule, recording: Recording) -> None:
        self._module, self.recording = module, recording

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        return self._module.replay(self.recording, tensors)


class GraphedModule:
    """A module itself, its calls of one ``structure`` replayed from CUDA graphs: without a compiler, ready at once.

    Weights that change in place, as a LoRA's do, take effect.
    """

    def __init__(self, module: nn.Module, structure: TreeSpec, runtime: GraphRuntime) -> None:
        self._module, self._structure = module, structure
        self._outputs: TreeSpec = ()
        self._weights = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]  # graphs hold none
        self._function = GraphedFunction(self._run, runtime)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        outputs = self._function(tensors)
        return tree_unflatten(self._outputs, iter(outputs))

    def is_recorded(self, rows: int) -> bool:
        """Return whether calls of so many rows are replayed."""
        return self._function.is_recorded(rows)

    def record(self, tensors: Sequence[Tensor]) -> Replay:
        """Record a call. Raises what ``GraphedFunction.record`` does."""
        return Replay(self, self._function.record(tensors))

    def publish(self, replay: Any) -> None:
        """Let a recorded call serve all calls of as many rows."""
        self._function.publish(replay.recording)

    def replay(self, recording: Recording, tensors: Sequence[Tensor]) -> Any:
        """Run a recording and return what the module would."""
        return tree_unflatten(self._outputs, iter(self._function.replay(recording, tensors)))

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        arguments, options = tree_unflatten(self._structure, iter(tensors))
        outputs: list[Tensor] = []
        self._outputs = tree_flatten(self._module(*arguments, **options), outputs)
        return outputs
