"""The checks of ``card_check``: host waits, captures, swaps, memory, ticks, a moving strength, NaN in every family."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.bench.measure import Row, Timings
from engine.bench.random_weights import WORKING_SIDES, build_components
from engine.bench.small_weights import FAMILIES, build_small
from engine.compile import Accelerator, open_graph_runtime
from engine.compile.cuda_graphs import GraphedModule
from engine.compile.dispatch import RowCounts, example_inputs
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.models import Model, pick_dtype
from engine.models.loading import build_model
from engine.runtime.cuda_streams import NotFinite
from engine.runtime.device import synchronize
from engine.shared.errors import first_line
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

MIB = 1 << 20
#: Settings whose ticks are searched for host waits → parameters.
FEATURES: dict[str, dict[str, Value]] = {
    "plain": {},
    "guidance full": {"/guidance": 1.5, "/guidance/mode": "full"},
    "guidance self": {"/guidance": 1.5, "/guidance/mode": "self"},
    "feedback": {"/feedback": 0.5, "/feedback/zoom": 1.02},
    "smoothing": {"/smoothing": 0.5},
    "consistency": {"/consistency": 1.0},
    "motion": {"/consistency/motion": 0.8},
    "similarity": {"/similarity": True},
    "seed travel": {"/seed/travel": 1.0, "/seed/travel/unit": "seconds"},
    "mix": {"/mix": 0.5},
}
#: Side of the pictures of the NaN scan: the smallest that all families take.
SMALL_SIDE = 64


class Deadline:
    """The end of a check's time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, negative after the end."""
        return self._end - time.perf_counter()

    @property
    def has_passed(self) -> bool:
        """Whether the time is over."""
        return self.left <= 0


class Card:
    """What is checked: a device, and one model on it, built when the first check needs it."""

    def __init__(self, device: torch.device, quick: bool, name: str | None = None) -> None:
        self.device, self.quick = device, quick
        self.name = name or ("pocket" if quick else "sd-turbo")
        self.side = 128 if quick else WORKING_SIDES.get(self.name, 512)
        rng = np.random.default_rng(1)
        self.frames = [Frame(rng.integers(0, 256, (self.side, self.side, 4), dtype=np.uint8), i) for i in range(4)]

    @cached_property
    def model(self) -> Model:
        """The model, in the type that the engine would choose."""
        dtype = pick_dtype("auto", self.device)
        return build_model(
            self.name, build_components(self.name, dtype, self.device, EngineOptions()), self.device, dtype
        )

    def open_stream(self, values: dict[str, Value] | None = None, side: int = 0) -> Stream:
        """Return a stream of the model with a full batch, at two steps."""
        stream = Stream(self.model, side or self.side, side or self.side, blocking=True)
        stream.apply(Snapshot({"/steps": 2, **(values or {})}))
        for index in range(3):
            self.tick(stream, index)
        return stream

    def tick(self, stream: Stream, index: int) -> None:
        """Run one tick on one of the frames."""
        frame = self.frames[index % len(self.frames)]
        if stream.width != self.side:
            frame = Frame(np.resize(frame.pixels, (stream.height, stream.width, 4)), index)
        stream.step([frame])

    def accelerate(self, stream: Stream, kind: str, deadline: Deadline, rows: Any = None) -> Accelerator:
        """Serve the model's parts with an accelerator of this kind."""
        accelerator = Accelerator(kind, self.device, graphs=open_graph_runtime(self.device))
        counts = rows or count_rows(stream.snapshot.diffusion, len(stream.plan.steps))
        accelerator.compile_all(lambda: self.model.compiled_modules, counts, max(0.0, deadline.left))
        return accelerator

    def drop_backends(self) -> None:
        """Let every part run as the module that it is."""
        for component in self.model.compiled_modules:
            component.invalidate_backends()

    def time_ticks(
        self, stream: Stream, count: int, deadline: Deadline, before: Callable[[int], object] = lambda _index: None
    ) -> Timings:
        """Time up to ``count`` ticks, at least one, each from its begin to the end of the device's work."""
        seconds: list[float] = []
        while len(seconds) < count and not (seconds and deadline.has_passed):
            start = time.perf_counter()
            before(len(seconds))
            self.tick(stream, len(seconds))
            synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return Timings(seconds)


@dataclass(frozen=True)
class Check:
    """A check with its time; ``run`` yields rows and stops at the deadline."""

    name: str
    title: str
    seconds: float
    needs_cuda: bool
    run: Callable[[Card, Deadline], Iterator[Row]]


def find_host_waits(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Count the calls that wait for the device in 100 ticks, by feature, with the places that do."""
    ticks = 5 if card.quick else 100
    for feature, values in FEATURES.items():
        if deadline.has_passed:
            yield {"feature": feature, "result": "not run: no time left"}
            continue
        stream, done = card.open_stream(values), 0
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                while done < ticks and not deadline.has_passed:
                    stream.begin([card.frames[done % len(card.frames)]])  # its result is waited for by design
                    done += 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream.close()
        waits = [w for w in caught if "synchroniz" in str(w.message)]
        places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
        yield {"feature": feature, "ticks": done, "waits": len(waits), "where": dict(places.most_common(5))}


def record_parts(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Record each part of the model for its numbers of rows, and time that."""
    stream, runtime = card.open_stream(), open_graph_runtime(card.device)
    assert runtime is not None
    counts = count_rows(stream.snapshot.diffusion, len(stream.plan.steps))
    for component in card.model.compiled_modules:
        if component.called is None:
            continue
        for rows in sorted(counts[component.name].present, reverse=True):
            if deadline.has_passed:
                yield {"part": component.name, "rows": rows, "result": "not run: no time left"}
                continue
            graphed = GraphedModule(component.module, component.called.structure, runtime)
            start = time.perf_counter()
            try:
                graphed.record(example_inputs(component.called, rows, card.device))
                synchronize(card.device)
                result = "recorded"
            except Exception as error:
                result = f"failed: {first_line(error)}"
            yield {"part": component.name, "rows": rows, "s": round(time.perf_counter() - start, 2), "result": result}
    stream.close()


def swap_often(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Change the working size again and again, with graphs where there are any: memory must not grow."""
    swaps, memory = 3 if card.quick else 200, list[float]()
    done = 0
    while done < swaps and not deadline.has_passed:
        stream = card.open_stream(side=card.side if done % 2 else card.side // 2)
        accelerator = card.accelerate(stream, "graphs", deadline)
        for index in range(3):
            card.tick(stream, index)
        accelerator.close()
        stream.close()
        card.drop_backends()
        done += 1
        if card.device.type == "cuda":
            memory.append(torch.cuda.memory_reserved(card.device) / MIB)
    row: Row = {"swaps": done, "of": swaps}
    if memory:
        row |= {"mib_after_2": round(memory[min(1, done - 1)]), "mib_at_end": round(memory[-1])}
    yield row


def measure_memory(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Measure what the denoiser's graphs reserve, by their numbers of rows, the largest first as the engine does."""
    stream = card.open_stream()
    before = torch.cuda.memory_reserved(card.device) / MIB
    for rows in (8, 6, 4, 3, 2, 1):
        if deadline.has_passed:
            yield {"rows": rows, "result": "not run: no time left"}
            continue
        present = tuple(n for n in (8, 6, 4, 3, 2, 1) if n >= rows)
        accelerator = card.accelerate(stream, "graphs", deadline, {"denoiser": RowCounts(present, 8)})
        reserved = torch.cuda.memory_reserved(card.device) / MIB
        yield {"rows": rows, "mib": round(reserved), "added_mib": round(reserved - before), "state": accelerator.state}
        before = reserved
    stream.close()
    card.drop_backends()


def time_backends(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Time a tick of the plain modules, of their graphs, and compiled: the build has what is left of the time."""
    ticks = 5 if card.quick else 60
    stream = card.open_stream()
    is_cuda = card.device.type == "cuda"
    for kind in ("eager", "graphs", "compile"):
        if kind != "eager" and not is_cuda:
            yield {"tick": kind, "result": "not run: needs CUDA"}
            continue
        if deadline.has_passed:
            yield {"tick": kind, "result": "not run: no time left"}
            continue
        accelerator = card.accelerate(stream, kind, deadline)
        times = card.time_ticks(stream, ticks, deadline)
        row: Row = {
            "tick": kind,
            "state": accelerator.state,
            "ms": round(times.median_ms, 2),
            "ticks": len(times.seconds),
        }
        yield row | ({"notes": accelerator.notes} if accelerator.notes else {})
        accelerator.close()
    stream.close()
    card.drop_backends()


def move_strength(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Time ticks with the strength at rest, and moved before each of them, as a modulator does."""
    ticks = 5 if card.quick else 100
    stream = card.open_stream()
    card.accelerate(stream, "graphs", deadline).close()

    def move(index: int) -> None:
        stream.apply(Snapshot({"/steps": 2, "/strength": 0.5 + 0.3 * math.sin(index / 5)}))

    for name, before in {"at rest": lambda _index: None, "moved": move}.items():
        times = card.time_ticks(stream, ticks, deadline, before)
        yield {"strength": name, "ms": round(times.median_ms, 2), "p95_ms": round(times.percentile_ms(95), 2)}
    stream.close()
    card.drop_backends()


def scan_for_nan(card: Card, deadline: Deadline) -> Iterator[Row]:
    """Run a small model of every family in each type, look for NaN, and record its graphs where there are any.

    Real weights may overflow where these do not.
    """
    halves = (torch.bfloat16,) if card.device.type == "cpu" else (torch.float16, torch.bfloat16)
    for family in FAMILIES:
        for dtype in (torch.float32, *halves):
            name = str(dtype).removeprefix("torch.")
            if deadline.has_passed:
                yield {"family": family, "dtype": name, "result": "not run: no time left"}
                continue
            yield {"family": family, "dtype": name, **_run_small(family, dtype, card.device, deadline)}


def _run_small(family: str, dtype: torch.dtype, device: torch.device, deadline: Deadline) -> Row:
    """Return whether three frames are finite, NaN or raise an error, and what became of the graphs."""
    row: Row = {"result": "finite"}
    try:
        model = build_model(family, build_small(family, dtype), device, dtype)
        stream = Stream(model, SMALL_SIDE, SMALL_SIDE, blocking=True)
        stream.apply(Snapshot({"/steps": 2}))
        rng = np.random.default_rng(1)
        for index in range(3):
            stream.step([Frame(rng.integers(0, 256, (SMALL_SIDE, SMALL_SIDE, 4), dtype=np.uint8), index)])
        stream.close()
    except NotFinite:
        return {"result": "NaN"}
    except Exception as error:
        return {"result": f"failed: {first_line(error)}"}
    graphs = open_graph_runtime(device)
    if graphs is not None:
        accelerator = Accelerator("graphs", device, graphs=graphs)
        counts = count_rows(stream.snapshot.diffusion, len(stream.plan.steps))
        accelerator.compile_all(lambda: model.compiled_modules, counts, max(0.0, deadline.left))
        row["recorded"] = [component.name for component in model.compiled_modules if component.backends]
        row["notes"] = [note for note in accelerator.notes if "CUDA graphs" in note]
    return row


#: All checks, the most telling first: a lease may end early.
CHECKS = (
    Check("waits", "calls that wait for the device, in 100 ticks", 60, True, find_host_waits),
    Check("capture", "recording of each part", 40, True, record_parts),
    Check("tick", "eager, graphed and compiled tick", 200, False, time_backends),
    Check("nan", "NaN in every family", 80, False, scan_for_nan),
    Check("memory", "memory of the graphs by rows", 30, True, measure_memory),
    Check("strength", "a tick while the strength moves", 30, False, move_strength),
    Check("swaps", "200 changes of size", 90, False, swap_often),
)
