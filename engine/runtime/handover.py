"""Work beside the frame loop on the same device, and how its results get to the loop.

Off CUDA every operation runs in order, where it is called: there is nothing to do. Not run on a GPU yet: none was
available where this was written.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from engine.runtime.cuda_streams import cuda_streams_of

T = TypeVar("T")
P = ParamSpec("P")
_LEAVES = (str, bytes, int, float, type(None))


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[Callable[[T], T]]:
    """Run this thread's work on the CUDA stream of loaders and encoders, and wait for it at the end.

    On the default stream each copy and each read would wait for the denoiser's queue. Yields a function that returns
    its argument: pass it what the frame loop is given, so that the loop may free that at any time.
    """
    if device.type != "cuda":
        yield lambda value: value
        return

    def hand_over(value: T) -> T:
        cuda_streams_of(device).record(*tensors_of(value))
        return value

    stream = _side_stream_of(device)
    with torch.cuda.stream(stream):
        yield hand_over
        stream.synchronize()


def on_side_stream(device: torch.device, function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` run on the side stream, its result handed over."""

    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with side_stream(device) as hand_over:
            return hand_over(function(*arguments, **options))

    return run


def finish_work(device: torch.device) -> None:
    """Wait for the frame loop's CUDA streams, before memory is freed that several of them use.

    Not for the whole device: a graph may be recorded there at the moment.
    """
    with contextlib.suppress(RuntimeError):  # a lost device shows at the next frame
        cuda_streams_of(device).synchronize()


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield the tensors that ``value`` holds: in modules, containers, and objects of the engine's own classes."""
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, _LEAVES) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, nn.Module):
            waiting += [*one.parameters(), *one.buffers()]
        elif isinstance(one, Mapping):
            waiting += _values(one)
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif type(one).__module__.startswith("engine."):
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()


def _values(mapping: Mapping[object, object]) -> list[object]:
    """Return the values of a mapping that another thread may change meanwhile."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(mapping.values())


@functools.cache
def _side_stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all threads beside the loop: they share its memory pool, and each waits for its end."""
    return torch.cuda.Stream(device)
