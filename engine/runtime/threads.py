"""Thread limit: background threads compute on one core each and leave the others to the frame loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def limit_to_one_thread() -> None:
    """Limit the calling thread's tensor operations to one core. Call it first in every background thread.

    OpenMP keeps a pool of workers for each thread that ever computed on several cores, as long as that thread lives.
    Once there are more workers than cores, none of them spins between two operations. Then each of the frame loop's
    hundreds of operations per frame waits for the system to wake its workers. A frame takes twice as long from the
    first background prompt on.
    """
    torch.set_num_threads(1)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Run the tensor operations inside on the calling thread alone: for a few small ones between two frames.

    The workers sleep there, and waking them for each operation takes longer than the operation. Results are the same.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
