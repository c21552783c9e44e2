"""Timings that can be compared: the runs alternate in turns, so that a slow moment of the machine affects all of them.

A turn is several runs in a row, like the frames of a stream. Its first run does not count, because caches and memory
are as the other run left them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.models import Model
from engine.runtime.device import synchronize

Row = dict[str, Any]
#: Runs of a turn that count.
RUNS_PER_TURN = 4


@dataclass(frozen=True)
class Timings:
    """Durations of single runs, in seconds."""

    seconds: Sequence[float]

    @property
    def median_ms(self) -> float:
        """Median in milliseconds."""
        return self.percentile_ms(50)

    @property
    def spread_ms(self) -> float:
        """Interquartile range in milliseconds."""
        return self.percentile_ms(75) - self.percentile_ms(25)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile, 0..100, in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1000


def time_in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timings]:
    """Time ``rounds`` runs of each, a turn at a time. On a GPU a run ends when the device is done."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    while any(len(times) < rounds for times in seconds.values()):
        for name, run in runs.items():
            for index in range(1 + RUNS_PER_TURN):
                start = time.perf_counter()
                run()
                synchronize(device)
                if index > 0 and len(seconds[name]) < rounds:
                    seconds[name].append(time.perf_counter() - start)
    return {name: Timings(times) for name, times in seconds.items()}


def compare(phosphene: Timings, baseline: Timings) -> Row:
    """Return both medians and spreads in milliseconds, and ``ratio``: baseline / phosphene, above 1 is faster."""
    return {
        "phosphene_ms": round(phosphene.median_ms, 2), "phosphene_spread_ms": round(phosphene.spread_ms, 2),
        "baseline_ms": round(baseline.median_ms, 2), "baseline_spread_ms": round(baseline.spread_ms, 2),
        "ratio": round(baseline.median_ms / phosphene.median_ms, 2),
    }  # fmt: skip


def compare_work(unit: str, phosphene: int, baseline: int) -> Row:
    """Return the work of both sides, counted in ``unit``; a note marks a row whose sides do the same work.

    The ratio of such a row is no comparison: what differs from 1 is the machine's noise.
    """
    row: Row = {f"phosphene_{unit}": phosphene, f"baseline_{unit}": baseline}
    return row | {"note": f"no comparison: same {unit}"} if phosphene == baseline else row


def build_matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Return a large matrix product, which reaches the device's peak rate, and its floating-point operations."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * side**3


class StageTimer:
    """A copy of ``model``, which times its three calls; ``seconds`` has one entry a tick for each stage."""

    def __init__(self, model: Model) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in ("encode", "denoise", "decode")}
        self.model = copy.copy(model)
        for name, times in self.seconds.items():
            setattr(self.model, name, self._time(getattr(model, name), times, model.device))

    def _time(self, call: Callable[..., Any], times: list[float], device: torch.device) -> Callable[..., Any]:
        def call_and_time(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            synchronize(device)
            times.append(time.perf_counter() - start)
            return result

        return call_and_time


class EnergyMeter:
    """Energy that an NVIDIA GPU used since the meter's construction, from the driver's counter; 0 elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        if device.type == "cuda":
            try:
                import pynvml
            except ImportError:
                return
            try:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
                self._read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
                self._start = self._read()
            except (pynvml.NVMLError, OSError, RuntimeError):  # no library, or a card without the counter
                self._handle = None

    def joules(self) -> float:
        """Return the energy so far."""
        return self._read() - self._start if self._handle is not None else 0.0
