"""Soak test: alike cycles of a minute for hours, with kills in between; measures drifts of memory and latency.

A cycle changes parameters, sends a burst of OSC and ends at the defaults, where memory is sampled. A slope is the
median of the slopes between all pairs of cycles of one engine process (Theil–Sen), without its first cycles.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from bridge import main_loop
from bridge.stress.harness import StressShow
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value

#: Length of a cycle, start of its burst and moment of its sample, in seconds.
CYCLE_SECONDS, BURST_SECONDS, SAMPLE_SECONDS = 60.0, 48.0, 58.5
#: Cycles of an engine process before its memory counts.
WARM_UP_CYCLES = 5
#: Cycles between two kills, and before the first.
CYCLES_PER_KILL, CYCLES_BEFORE_KILL = 30, 2
#: Limits on handles and threads over the whole test, and on the gap between frames.
MAX_HANDLES, MAX_THREADS, MAX_GAP_MS = 4, 2, 150
COMPILE_TIMEOUT_SECONDS = 600.0
PROMPTS = ("neon tunnel", "a forest of glass", "fire", "deep sea", "stars", "red plasma", "a green spiral", "snow")


@dataclass(frozen=True)
class Sample:
    """What was measured at the end of a cycle; ``engine_number`` counts the engine processes.

    Memory in MiB, latency (p99) and gap in ms.
    """

    hours: float
    engine_number: int
    bridge_memory: float
    engine_memory: float
    handles: int
    threads: int
    fps: float
    p99: float
    gap: float

    def __str__(self) -> str:
        return (
            f"{self.hours * 60:6.1f}  {self.bridge_memory:10.2f}  {self.engine_memory:10.2f}  {self.handles:7d}"
            f"  {self.threads:7d}  {self.fps:4.1f}  {self.p99:6.1f}  {self.gap:6.0f}"
        )


HEADER = "minute  bridge MiB  engine MiB  handles  threads   fps  p99 ms  gap ms"


def draw_changes(count: int = 90) -> list[dict[str, Value]]:
    """Return the parameter changes of a cycle, the same at every call."""
    rng = random.Random(5)
    changes: list[Callable[[], dict[str, Value]]] = [
        lambda: {"/prompt": rng.choice(PROMPTS)},
        lambda: {"/strength": rng.uniform(0.2, 0.9)},
        lambda: {"/steps": rng.randint(1, 3)},
        lambda: {"/seed": rng.randrange(1000)},
        lambda: {"/guidance": rng.choice((1.0, 1.4)), "/guidance/mode": "self"},
        lambda: {"/feedback": rng.uniform(0.0, 0.4), "/feedback/zoom": rng.uniform(0.98, 1.02)},
        lambda: {"/output/hue": rng.uniform(-180, 180), "/master": rng.uniform(0.5, 1.0)},
        lambda: {"/smoothing": rng.uniform(0.0, 0.8)},
        lambda: {"/freeze": rng.random() < 0.3},
        lambda: {"/similarity": rng.random() < 0.5},
    ]
    return [rng.choice(changes)() for _ in range(count)]


def theil_sen_slope(points: Sequence[tuple[float, int, float]]) -> float:
    """Return the median slope of (hours, group, value) between points of one group; 0 without such a pair."""
    slopes = [
        (b[2] - a[2]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if a[1] == b[1] and b[0] > a[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def run_soak(
    engine: EngineOptions, values: Mapping[str, Value], hours: float, max_memory: float, max_latency: float
) -> bool:
    """Run for ``hours``, print a line per cycle, then the drifts; return whether every limit held.

    ``max_memory`` is in MiB per hour, ``max_latency`` the fraction by which the latency may grow.
    """
    end = time.perf_counter() + hours * 3600
    samples: list[Sample] = []
    with StressShow(engine, values, recording=False) as test:
        supervisor = test.show.supervisor
        test.wait_until(
            lambda: supervisor.status is not None and not supervisor.status.compiling,
            "compiled model",
            COMPILE_TIMEOUT_SECONDS,
        )
        test.wait_until(lambda: supervisor.standby.pid is not None, "standby engine")
        start, changes = time.perf_counter(), draw_changes()
        print(HEADER, flush=True)
        while not samples or time.perf_counter() + CYCLE_SECONDS < end:
            if len(samples) % CYCLES_PER_KILL == CYCLES_BEFORE_KILL and supervisor.pid is not None:
                os.kill(supervisor.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                test.wait_until(lambda: supervisor.ready.is_set() and supervisor.standby.pid is not None, "new engine")
            samples.append(_run_cycle(test, changes, start))
            print(samples[-1], flush=True)
    return check_samples(samples, max_memory, max_latency)


def _run_cycle(test: StressShow, changes: Sequence[Mapping[str, Value]], test_start: float) -> Sample:
    """Run one cycle and return its sample."""
    start, defaults = time.perf_counter(), dict(test.state.snapshot())
    test.audience.shown.clear()
    for number, change in enumerate(changes):
        _sleep_until(start + BURST_SECONDS * number / len(changes))
        test.state.put(change)
    sender = [sys.executable, "-m", "bridge.stress.senders", "20,000 OSC messages per second"]
    subprocess.run([*sender, str(test.osc.port), "0", "0", "2"], check=True)
    test.state.put(defaults)
    _sleep_until(start + SAMPLE_SECONDS)
    supervisor = test.show.supervisor
    bridge, engine = psutil.Process(), psutil.Process(supervisor.pid or os.getpid())
    sample = Sample(
        hours=(time.perf_counter() - test_start) / 3600,
        engine_number=supervisor.starts,
        bridge_memory=bridge.memory_info().rss / 2**20,
        engine_memory=engine.memory_info().rss / 2**20,
        handles=_count_handles(bridge) + _count_handles(engine),
        threads=bridge.num_threads() + engine.num_threads(),
        fps=test.audience.count_transformed(start) / SAMPLE_SECONDS,
        p99=float(np.percentile(test.audience.latencies() or [0.0], 99)) * 1000,
        gap=test.audience.longest_gap(start) * 1000,
    )
    _sleep_until(start + CYCLE_SECONDS)
    return sample


def _sleep_until(moment: float) -> None:
    main_loop.sleep(max(0.0, moment - time.perf_counter()))


def _count_handles(process: psutil.Process) -> int:
    return int(process.num_handles() if sys.platform == "win32" else process.num_fds())


def check_samples(samples: Sequence[Sample], max_memory: float, max_latency: float) -> bool:
    """Print the drifts and return whether each is within its limit."""
    first_cycle = {sample.engine_number: i for i, sample in reversed(list(enumerate(samples)))}
    warm = [sample for i, sample in enumerate(samples) if i - first_cycle[sample.engine_number] >= WARM_UP_CYCLES]
    if len(warm) < 2:
        print(f"too short for a result: needs at least {WARM_UP_CYCLES + 2} cycles of a minute")
        return False
    # The bridge outlives its engines: all cycles but the first belong to one process.
    bridge = theil_sen_slope([(s.hours, 0, s.bridge_memory) for s in samples[WARM_UP_CYCLES:]])
    engine = theil_sen_slope([(s.hours, s.engine_number, s.engine_memory) for s in warm])
    first, last = warm[0], warm[-1]
    handles, threads = last.handles - first.handles, last.threads - first.threads
    drift = last.p99 / first.p99 - 1 if first.p99 else 0.0
    gap = max(sample.gap for sample in samples)
    latency = f"latency (p99) {first.p99:.1f} ms in the first minute, {last.p99:.1f} ms in the last ({drift:+.1%})"
    checks = {
        f"memory of the bridge {bridge:+.2f} MiB per hour": bridge <= max_memory,
        f"memory of the engine {engine:+.2f} MiB per hour": engine <= max_memory,
        f"handles {handles:+d}": handles <= MAX_HANDLES,
        f"threads {threads:+d}": threads <= MAX_THREADS,
        latency: drift <= max_latency,
        f"longest gap {gap:.0f} ms": gap <= MAX_GAP_MS,
    }
    for text, passed in checks.items():
        print(f"{'passed' if passed else 'FAILED'} {text}")
    return all(checks.values())
