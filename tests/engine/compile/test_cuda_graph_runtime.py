"""The calls to ``torch.cuda`` that record graphs, against stand-ins with its names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.compile.cuda_graphs import (
    CaptureFailed,
    CudaGraphRuntime,
    GraphedFunction,
    open_graph_runtime,
)
from engine.runtime.device import CAPTURE_LOCK, empty_cache
from engine.runtime.device_memory import RESERVE_BYTES

SECOND = torch.device("cuda", 1)


class Stream:
    """A stream of torch: 32 handles for each priority, handed out in turn."""

    handles: dict[int, Iterator[int]]

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        self.device, self.priority = device, priority
        turn = Stream.handles.setdefault(priority, itertools.cycle(range(32)))
        self.cuda_stream = 1000 * -priority + next(turn)
        self.waited_for: list[int] = []

    def wait_stream(self, stream: Stream) -> None:
        self.waited_for.append(stream.cuda_stream)


class Cuda:
    """What is called of ``torch.cuda``, and the errors that it answers with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.end_error = ""
        self.free = 10 << 30
        self.main = Stream(SECOND)
        self.current = self.main
        cuda = self

        class CUDAGraph:
            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                cuda.calls.append(("begin", cuda.current.cuda_stream, pool, capture_error_mode))

            def capture_end(self) -> None:
                cuda.calls.append(("end",))
                if cuda.end_error:
                    raise RuntimeError(cuda.end_error)

            def replay(self) -> None:
                cuda.calls.append(("replay", cuda.current.cuda_stream))

        @contextmanager
        def stream(stream: Stream) -> Iterator[None]:
            before, self.current = self.current, stream
            try:
                yield
            finally:
                self.current = before

        def current_stream(device: torch.device) -> Stream:
            assert device == SECOND
            return self.current

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
        pools = itertools.count()
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (self.free, 24 << 30))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append(("empty cache",)))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the stream would stand still"))
        monkeypatch.setattr(CudaGraphRuntime, "retain", lambda *_: None)  # CPU tensors know no streams


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    monkeypatch.setattr(Stream, "handles", {}, raising=False)
    return Cuda(monkeypatch)


def double(tensors: Any) -> list[torch.Tensor]:
    return [tensors[0] * 2]


def test_a_part_is_recorded_on_a_stream_and_pool_of_its_device(cuda: Cuda) -> None:
    runtime = CudaGraphRuntime(SECOND)
    graphed, x = GraphedFunction(double, runtime), torch.ones(3, 2)
    for rows in (3, 1):
        graphed.publish(graphed.record([x[:rows]]))
    [stream] = runtime._streams
    assert stream.device == SECOND
    assert [call for call in cuda.calls if call[0] == "begin"] == [
        ("begin", stream.cuda_stream, (0, 0), "thread_local")
    ] * 2
    assert cuda.current is cuda.main
    assert stream.waited_for == [cuda.main.cuda_stream] * 2
    assert cuda.main.waited_for == [stream.cuda_stream] * 2
    graphed([x])
    assert cuda.calls[-1] == ("replay", cuda.main.cuda_stream), "replayed where the caller's work is"


def test_the_stream_and_later_captures_survive_a_failed_one(cuda: Cuda) -> None:
    graphed, x = GraphedFunction(double, CudaGraphRuntime(SECOND)), torch.ones(3, 2)
    cuda.end_error = "CUDA error: operation failed due to a previous error during capture"
    with pytest.raises(CaptureFailed, match="previous error"):
        graphed.record([x])
    assert cuda.current is cuda.main
    assert not CAPTURE_LOCK.locked()
    assert torch.equal(graphed([x])[0], x * 2)


def test_no_two_living_parts_share_a_stream_after_a_night_of_swaps(cuda: Cuda) -> None:
    runtime = CudaGraphRuntime(SECOND)
    living = [GraphedFunction(double, runtime) for _ in range(3)]
    for _ in range(100):
        GraphedFunction(double, runtime)
        handles = {graphed._stream.cuda_stream for graphed in living}
        assert len(handles) == 3
        assert GraphedFunction(double, runtime)._stream.cuda_stream not in handles
    loop = [Stream(SECOND), Stream(SECOND, priority=-1)]
    assert not {stream.cuda_stream for stream in loop} & {graphed._stream.cuda_stream for graphed in living}


def test_the_cache_is_emptied_only_where_memory_is_short_and_never_inside_a_capture(cuda: Cuda) -> None:
    runtime = CudaGraphRuntime(SECOND)
    runtime.make_room()
    assert not cuda.calls
    cuda.free = RESERVE_BYTES - 1
    runtime.make_room()
    assert cuda.calls == [("empty cache",)]
    with CAPTURE_LOCK:
        empty_cache()
    assert cuda.calls == [("empty cache",)], "torch's allocator would raise an error"


@pytest.mark.parametrize(
    ("release", "survives"), [("2.12.1+cu130", False), ("2.13.0", True), ("2.13.0a0+git1", True), ("3.0.0", True)]
)
def test_old_releases_do_not_survive_a_failed_capture(
    release: str, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    assert CudaGraphRuntime(SECOND).survives_failure is survives


def test_only_cuda_has_graphs() -> None:
    assert isinstance(open_graph_runtime(SECOND), CudaGraphRuntime)
    assert open_graph_runtime(torch.device("cpu")) is open_graph_runtime(torch.device("mps")) is None
