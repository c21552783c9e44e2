"""``phosphene soak``: a long night. A minute of changes, a flood and a moment of calm, the same again and again, with kills between; then
whether memory, handles, threads and latency stayed what they were.

What is compared is alike: every cycle does the same, and memory is read in its last second, when all is back at its defaults. The slope is
the median of the slopes between all pairs of cycles of one engine's life (Theil and Sen), the first cycles of each life left out.
"""

from __future__ import annotations

import argparse
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

from bridge.commands.options import engine_options
from bridge.stress.harness import StressShow
from engine.shared.parameter import Value

#: Length of a cycle, when its flood begins and when it is looked at, in seconds; cycles of a life that are its warm-up.
CYCLE, FLOOD, LOOK = 60.0, 48.0, 58.5
WARM_UP = 5
#: Cycles between two kills, and before the first.
KILLED, FIRST_KILL = 30, 2
PROMPTS = ("neon tunnel", "a forest of glass", "fire", "deep sea", "stars", "red plasma", "a green spiral", "snow")


@dataclass(frozen=True)
class Look:
    """What was seen at the end of a cycle. Memory in MiB, latencies in milliseconds."""

    hours: float
    life: int
    bridge: float
    engine: float
    handles: int
    threads: int
    fps: float
    p99: float
    gap: float


def script(count: int = 90) -> list[dict[str, Value]]:
    """The changes of a cycle, the same each time."""
    rng = random.Random(5)
    ways: list[Callable[[], dict[str, Value]]] = [
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
    return [rng.choice(ways)() for _ in range(count)]


def slope(points: Sequence[tuple[float, int, float]]) -> float:
    """The median slope of (hours, life, value) between points of one life; 0 where there are no two."""
    slopes = [
        (b[2] - a[2]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if a[1] == b[1] and b[0] > a[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def soak(options: argparse.Namespace, values: Mapping[str, Value]) -> int:
    """Runs for ``--hours`` and prints a line a cycle, then the slopes; 1 where one is past its bound."""
    end = time.monotonic() + options.hours * 3600
    looks: list[Look] = []
    with StressShow(engine_options(options), values, recording=False) as rehearsal:
        supervisor = rehearsal.show.supervisor
        rehearsal.until(lambda: not supervisor.compiling, "the compiled model", 600.0)
        rehearsal.until(lambda: supervisor.reserve is not None, "an engine in reserve")
        began, steps = time.monotonic(), script()
        print("minute  bridge MiB  engine MiB  handles  threads   fps  p99 ms  gap ms", flush=True)
        while not looks or time.monotonic() + CYCLE < end:
            if len(looks) % KILLED == FIRST_KILL and supervisor.pid is not None:
                os.kill(supervisor.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                rehearsal.until(lambda: supervisor.ready.is_set() and supervisor.reserve is not None, "another engine")
            look = _cycle(rehearsal, steps, began)
            looks.append(look)
            print(
                f"{look.hours * 60:6.1f}  {look.bridge:10.2f}  {look.engine:10.2f}  {look.handles:7d}  {look.threads:7d}  {look.fps:4.1f}"
                f"  {look.p99:6.1f}  {look.gap:6.0f}", flush=True,
            )  # fmt: skip
    return _judged(looks, options.memory, options.latency / 100)


def _cycle(rehearsal: StressShow, steps: Sequence[Mapping[str, Value]], began: float) -> Look:
    """One cycle, and what it looks like at its end."""
    start, defaults = time.monotonic(), dict(rehearsal.state.snapshot())
    rehearsal.audience.seen.clear()
    for number, change in enumerate(steps):
        time.sleep(max(0.0, start + FLOOD * number / len(steps) - time.monotonic()))
        rehearsal.state.put(change)
    osc = str(rehearsal.osc.port)
    subprocess.run(
        [sys.executable, "-m", "bridge.stress.load", "20,000 OSC messages a second", osc, "0", "0", "2"], check=True
    )
    rehearsal.state.put(defaults)
    time.sleep(max(0.0, start + LOOK - time.monotonic()))
    supervisor = rehearsal.show.supervisor
    bridge, engine = psutil.Process(), psutil.Process(supervisor.pid or os.getpid())
    first = {
        sequence: latency for _, sequence, snapshot, latency in reversed(rehearsal.audience.seen) if snapshot > 0
    }  # not when held
    latencies = list(first.values())
    look = Look(
        (time.monotonic() - began) / 3600, supervisor.starts, bridge.memory_info().rss / 2**20, engine.memory_info().rss / 2**20,
        _handles(bridge) + _handles(engine), bridge.num_threads() + engine.num_threads(), rehearsal.audience.fresh(start) / LOOK,
        float(np.percentile(latencies or [0.0], 99)) * 1000, rehearsal.audience.gap(start) * 1000,
    )  # fmt: skip
    time.sleep(max(0.0, start + CYCLE - time.monotonic()))
    return look


def _handles(process: psutil.Process) -> int:
    return int(process.num_handles() if sys.platform == "win32" else process.num_fds())


def _judged(looks: Sequence[Look], memory: float, latency: float) -> int:
    """Prints the slopes and says whether they are within bounds: 0 or 1."""
    firsts = {
        life: min(i for i, look in enumerate(looks) if look.life == life) for life in {look.life for look in looks}
    }
    settled = [look for i, look in enumerate(looks) if i - firsts[look.life] >= WARM_UP]
    if len(settled) < 2:
        print(f"too short to tell: {WARM_UP + 2} cycles of a minute are needed at least")
        return 1
    whole = [look for i, look in enumerate(looks) if i >= WARM_UP]  # the bridge lives on when an engine is killed
    bridge = slope([(look.hours, 0, look.bridge) for look in whole])
    engine = slope([(look.hours, look.life, look.engine) for look in settled])
    handles, threads = settled[-1].handles - settled[0].handles, settled[-1].threads - settled[0].threads
    drift = settled[-1].p99 / settled[0].p99 - 1 if settled[0].p99 else 0.0
    gap = max(look.gap for look in looks)
    verdicts = {
        f"memory of the bridge {bridge:+.2f} MiB an hour": bridge <= memory,
        f"memory of the engine {engine:+.2f} MiB an hour": engine <= memory,
        f"handles {handles:+d}": handles <= 4,
        f"threads {threads:+d}": threads <= 2,
        f"latency (p99) {settled[0].p99:.1f} ms in the first minute, {settled[-1].p99:.1f} ms in the last ({drift:+.1%})": drift <= latency,
        f"longest gap {gap:.0f} ms": gap <= 150,
    }  # fmt: skip
    for text, held in verdicts.items():
        print(f"{'held  ' if held else 'MISSED'} {text}")
    return 0 if all(verdicts.values()) else 1
