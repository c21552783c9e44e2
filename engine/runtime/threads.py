"""Thread limit: background threads compute on one core each and leave the others to the frame loop."""

from __future__ import annotations

import torch


def limit_to_one_thread() -> None:
    """Limit the calling thread's tensor operations to one core. Call it first in every background thread.

    OpenMP keeps a pool of workers for each thread that ever computed on several cores, as long as that thread lives.
    Once there are more workers than cores, none of them spins between two operations. Then each of the frame loop's
    hundreds of operations per frame waits for the system to wake its workers. A frame takes twice as long from the
    first background prompt on.
    """
    torch.set_num_threads(1)
