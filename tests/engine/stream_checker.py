"""A checker of CUDA streams without CUDA: who uses which memory on which stream, and what orders them.

Streams and events are stand-ins with vector clocks (Mattern, "Virtual Time and Global States", 1989). A stream's clock
says which work of every stream is certainly done before its next work. The tensors are on the ``meta`` device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from engine.runtime import cuda_streams, handover
from engine.runtime.cuda_streams import CudaStreams
from tests.engine.transfers import Transfers, line_of_engine

CUDA = torch.device("cuda")


@dataclass(eq=False)
class ClockedStream:
    """A stream: its name, and how much of each stream's work is done before its next."""

    name: str
    host: ClockedStream | None = None
    clock: dict[str, int] = field(default_factory=dict)

    def join(self, other: ClockedStream | dict[str, int]) -> None:
        for name, time in (other if isinstance(other, dict) else other.clock).items():
            self.clock[name] = max(time, self.clock.get(name, 0))

    def advance(self) -> int:
        """Queue work, after all that the host has waited for; return its time."""
        if self.host is not None:
            self.join(self.host)
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return self.clock[self.name]

    def is_after(self, stream: str, time: int) -> bool:
        return stream in ("", self.name) or self.clock.get(stream, 0) >= time

    def wait_stream(self, other: ClockedStream) -> None:
        self.join(other)

    def synchronize(self) -> None:
        assert self.host is not None
        self.host.join(self)


@dataclass
class Memory:
    """A storage: the stream that allocated it, its last write, its last use by each, and those it was recorded for."""

    reference: Any
    allocated_on: str
    written_by: str
    written_at: int
    line: str
    uses: dict[str, int] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)


class StreamChecker(Transfers):
    """Notes the stream of each operation on the meta device, and finds what is not ordered, in ``faults``."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__(answer)
        self.host = ClockedStream("host")
        self.main = self.current = ClockedStream("main", self.host)
        self.faults: list[str] = []
        self._memory: dict[int, Memory] = {}
        self._allocated: dict[int, Memory] = {}  # those that an operation allocated, not the weights
        self._freed: dict[str, list[Memory]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> CudaStreams:
        """Put the stand-ins in place of torch's, and return streams that use them."""
        names = iter(("in", "out", "side"))
        patch.setattr(
            torch.cuda,
            "Stream",
            lambda _device, priority=0: ClockedStream("loop" if priority else next(names), self.host),
        )
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "current_stream", lambda _device: self.current)
        patch.setattr(torch.cuda, "default_stream", lambda _device: self.main)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream))
        streams = CudaStreams(CUDA)
        patch.setattr(cuda_streams, "cuda_streams_of", lambda _device: streams)
        patch.setattr(handover, "cuda_streams_of", lambda _device: streams)
        handover._side_stream_of.cache_clear()
        return streams

    @contextlib.contextmanager
    def on(self, stream: ClockedStream) -> Iterator[None]:
        """Run what follows on ``stream``."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        reads = len(self.reads)
        result = super().run(func, args, kwargs)
        used, changed = _arguments(func, args, kwargs)
        allocated = {key: tensor for key, tensor in _storages(result).items() if key not in used}
        if not allocated and not changed and len(self.reads) == reads:
            return result  # a view: nothing is computed
        time = self.current.advance()
        for key, tensor in used.items():
            self._use(key, tensor, time, key in changed, func)
        for key, tensor in allocated.items():
            self._allocate(key, tensor, time)
        if len(self.reads) > reads or (_is_upload(func, args) and not kwargs.get("non_blocking")):
            self.current.synchronize()  # the host waits for the answer, or for the copy from pageable memory
        return result

    def _use(self, key: int, tensor: Tensor, time: int, writes: bool, func: Any) -> None:
        stream = self.current
        memory = self._memory.get(key)
        if memory is None:  # loaded before, and waited for
            memory = self._memory[key] = Memory(StorageWeakRef(tensor.untyped_storage()), "", "", 0, "")
        if not stream.is_after(memory.written_by, memory.written_at):
            self.faults.append(f"{stream.name} reads before {memory.written_by} wrote: {func} at {line_of_engine()}")
        if writes:
            for user, used_at in memory.uses.items():
                if not stream.is_after(user, used_at):
                    self.faults.append(f"{stream.name} overwrites what {user} reads: {func} at {line_of_engine()}")
            memory.written_by, memory.written_at = stream.name, time
        memory.uses[stream.name] = time

    def _allocate(self, key: int, tensor: Tensor, time: int) -> None:
        """Note new memory. It may be any that was freed on this stream before: all users must be done with that."""
        for other, memory in list(self._allocated.items()):
            if memory.reference.expired():
                del self._allocated[other]
                self._memory.pop(other, None)
                self._freed.setdefault(memory.allocated_on, []).append(memory)
        for memory in self._freed.pop(self.current.name, ()):
            for user, used_at in memory.uses.items():
                if user not in memory.recorded and not self.current.is_after(user, used_at):
                    self.faults.append(f"{user} still reads what {self.current.name} freed, allocated at {memory.line}")
        reference = StorageWeakRef(tensor.untyped_storage())
        memory = Memory(reference, self.current.name, self.current.name, time, line_of_engine())
        memory.uses[self.current.name] = time
        self._memory[key] = self._allocated[key] = memory

    def _record(self, tensor: Tensor, stream: ClockedStream) -> None:
        memory = self._memory.get(tensor.untyped_storage()._cdata)
        if memory is not None:
            memory.recorded.add(stream.name)


def _arguments(func: Any, args: Any, kwargs: Any) -> tuple[dict[int, Tensor], set[int]]:
    """Return the storages that an operation is given, and those of them that it changes."""
    used: dict[int, Tensor] = {}
    changed: set[int] = set()
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        storages = _storages(value)
        used |= storages
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed |= set(storages)
    return used, changed


def _storages(value: Any) -> dict[int, Tensor]:
    tensors = [one for one in tree_leaves(value) if isinstance(one, Tensor) and one.is_meta]
    return {tensor.untyped_storage()._cdata: tensor for tensor in tensors}


def _is_upload(func: Any, args: Any) -> bool:
    source = args[1] if func is torch.ops.aten.copy_.default else args[0] if func is _TO_COPY else None
    return isinstance(source, Tensor) and source.device.type == "cpu"


_TO_COPY = torch.ops.aten._to_copy.default
