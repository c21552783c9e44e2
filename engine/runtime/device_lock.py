"""Device lock: one thread at a time runs operators on a device that does not bear more.

On MPS two Python threads that run operators at the same time abort the process (pytorch issue 197805). All other
devices take any number of threads, and get no lock. Not run on a Mac yet: none was available where this was written.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

S = TypeVar("S", bound="_HasDeviceLock")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
#: Bytes that are moved to a device in one go: some milliseconds, for which the picture stands still. The loader waits
#: for a tick before each go, so that one layer at a time would take long.
CHUNK_BYTES = 64 << 20
#: Types of devices on which only one thread at a time may run operators.
SINGLE_THREADED_DEVICES = frozenset({"mps"})


class FairLock:
    """A reentrant lock that waiting threads get in turn.

    A plain lock that a busy loop releases and takes again at once never reaches the thread that waits for it. Here the
    loop has to queue behind that thread.
    """

    def __init__(self) -> None:
        self._queue, self._lock = threading.Lock(), threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    @property
    def is_held(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> FairLock:
        if not self.is_held:
            with self._queue:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()


def device_lock(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a thread runs operators on ``device``; it may be entered again inside.

    Hold it for one tick, one prompt or one chunk of weights at a time: what holds it stops the picture. Never wait
    inside it for another thread that runs operators, nor for a lock that such a thread holds.
    """
    if device.type not in SINGLE_THREADED_DEVICES:
        return nullcontext()
    return _lock_of(device.type, device.index or 0)


def split_into_chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in groups that their last item brings to CHUNK_BYTES; ``size`` returns an item's bytes."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if sum(map(size, group)) >= CHUNK_BYTES:
            yield group
            group = []
    if group:
        yield group


class _HasDeviceLock(Protocol):
    @property
    def device_lock(self) -> AbstractContextManager[object]: ...


def hold_device_lock(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """Run a method inside the ``device_lock`` of its object."""

    @functools.wraps(method)
    def run(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        with self.device_lock:
            return method(self, *arguments, **options)

    return run


@functools.cache
def _lock_of(_kind: str, _index: int) -> FairLock:
    return FairLock()
