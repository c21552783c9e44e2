"""Times that can be compared: what is compared runs in turns, so that a slow moment of the machine meets all alike.

A turn is several runs in a row, as a stream runs, and the first of them is not counted: it finds caches and memory as the other left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
#: Runs of a turn that count.
TURN = 4


@dataclass(frozen=True)
class Times:
    """Seconds of the single runs."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one, in milliseconds."""
        return self.percentile(50)

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(np.percentile(self.seconds, share)) * 1000

    @property
    def spread(self) -> float:
        """From the first to the third quarter, in milliseconds."""
        return self.percentile(75) - self.percentile(25)


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Times]:
    """Times ``rounds`` runs of each, a turn at a time. On a GPU each time ends when the device is done."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    while any(len(times) < rounds for times in taken.values()):
        for name, run in runs.items():
            for index in range(1 + TURN):
                start = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if index > 0 and len(taken[name]) < rounds:
                    taken[name].append(time.perf_counter() - start)
    return {name: Times(seconds) for name, seconds in taken.items()}


def compared(ours: Times, theirs: Times) -> Row:
    """Both medians with their spread, in milliseconds, and ``ratio``: theirs over ours, above 1 is faster."""
    return {
        "ours_ms": round(ours.median, 2), "ours_spread_ms": round(ours.spread, 2),
        "theirs_ms": round(theirs.median, 2), "theirs_spread_ms": round(theirs.spread, 2),
        "ratio": round(theirs.median / ours.median, 2),
    }  # fmt: skip


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A large matrix product, which reaches what the device can do at all, and its floating-point operations."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * side**3
