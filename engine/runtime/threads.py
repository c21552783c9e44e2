"""The cores belong to the frame loop: what computes beside it does so on one thread."""

from __future__ import annotations

import torch


def limit_to_one_thread() -> None:
    """To be called first by every thread that computes beside the frame loop.

    OpenMP keeps a pool of workers for each thread that ever computed on several, for as long as that thread lives. As soon as there are
    more workers than cores none of them spins between two operations, and each of the frame loop's hundreds of operations a frame waits
    for the system to wake its workers: a frame takes twice as long, from the first prompt on that was encoded beside it.
    """
    torch.set_num_threads(1)
