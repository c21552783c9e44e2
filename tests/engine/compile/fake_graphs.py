"""CUDA graphs on the CPU: a replay runs the recorded function again, into the tensors of the recording.

Streams, pools and threads are noted, and captures can be made to fail as CUDA's do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):
    """Records the operators that run inside it, with their tensors, and runs them again into the same results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def run(self) -> None:
        """Compute everything again, from what the tensors hold now."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # a view follows by itself
                    old.copy_(new)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


@dataclass
class Stream:
    """A stream: its name, and the streams that it has waited for, in order."""

    name: str
    waited_for: list[str] = field(default_factory=list)


@dataclass
class Capture:
    """A capture that was begun: the names of its stream, its pool and its thread."""

    stream: str
    pool: str
    thread: str


class FakeGraph:
    def __init__(self, runtime: FakeGraphs) -> None:
        self._runtime, self._tape = runtime, Tape()

    def begin(self, pool: Any) -> None:
        runtime = self._runtime
        runtime.captures.append(Capture(runtime.current_stream().name, pool, threading.current_thread().name))
        if runtime.fails_at == "begin":
            raise RuntimeError("CUDA error: out of memory (begin)")
        assert not runtime.capturing, "two captures at once invalidate each other"
        runtime.capturing = True
        self._tape.__enter__()

    def end(self) -> None:
        runtime = self._runtime
        self._tape.__exit__(None, None, None)
        runtime.capturing = False
        if runtime.fails_at == "end":
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture (end)")

    def replay(self) -> None:
        runtime = self._runtime
        assert runtime.replaying.acquire(blocking=False), "two threads replay graphs with the same memory"
        try:
            runtime.replays.append((runtime.current_stream().name, threading.current_thread().name))
            runtime.during_replay()
            self._tape.run()
        finally:
            runtime.replaying.release()


class FakeGraphs:
    """A ``GraphRuntime``. Set ``fails_at`` to "begin" or "end" to let captures fail there."""

    def __init__(self, survives_failure: bool = True) -> None:
        self.survives_failure, self.fails_at, self.capturing = survives_failure, "", False
        self.streams: list[Stream] = []
        self.pools: list[str] = []
        self.captures: list[Capture] = []
        self.replays: list[tuple[str, str]] = []
        self.retained: list[tuple[int, str]] = []
        self.room_requests = 0
        self.replaying = threading.Lock()
        self.during_replay: Callable[[], None] = lambda: None
        self._current = threading.local()
        self.main = Stream("main")

    def new_stream(self) -> Stream:
        self.streams.append(Stream(f"stream {len(self.streams)}"))
        return self.streams[-1]

    def new_pool(self) -> str:
        self.pools.append(f"pool {len(self.pools)}")
        return self.pools[-1]

    def new_graph(self) -> FakeGraph:
        return FakeGraph(self)

    def current_stream(self) -> Stream:
        return getattr(self._current, "stream", self.main)

    @contextmanager
    def use_stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def is_same(self, stream: Stream, other: Stream) -> bool:
        return stream is other

    def wait(self, stream: Stream, earlier: Stream) -> None:
        stream.waited_for.append(earlier.name)

    def retain(self, tensors: Sequence[Tensor], stream: Stream) -> None:
        self.retained += [(id(tensor), stream.name) for tensor in tensors]

    def make_room(self) -> None:
        assert not self.capturing
        self.room_requests += 1


class Scale(torch.nn.Module):
    """A module that counts the calls of its Python code: a replay runs none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]), requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> Any:
        self.calls += 1
        return (x * self.weight + t[:, None],)


class Peeking(Scale):
    """A module that reads a value back from its device."""

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> Any:
        return (x * float(self.weight.sum()) + t[:, None],)
