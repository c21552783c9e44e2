"""Benchmarks of one model: against diffusers, stream batch, guidance, similarity filter, growth, FLOPs, overhead.

In every comparison the row names both sides: ``phosphene`` and its ``baseline``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from engine.bench.diffusers_baseline import DiffusersBaseline
from engine.bench.measure import (
    EnergyMeter,
    Row,
    StageTimer,
    Timings,
    build_matrix_product,
    compare,
    compare_work,
    time_in_turns,
)
from engine.bench.random_weights import WORKING_SIDES, build_components, find_architecture_of
from engine.compile import Accelerator, open_graph_runtime
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.models import pick_device, pick_dtype
from engine.models.hf_imports import import_quietly
from engine.models.loading import build_model
from engine.runtime.allocator import retain_freed_memory
from engine.runtime.device import use_device
from engine.shared.frame import Frame, Pixels
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

PROMPT = "neon tunnel, magenta and cyan"
SEED = 1
#: The most steps that ``/steps`` takes; longer runs need an explicit ``/schedule``.
MAX_STEPS = 8


class Bench:
    """One model on one device, with ``rounds`` timed runs for each figure."""

    def __init__(self, name: str, options: EngineOptions, rounds: int, side: int = 0, dtype: str = "auto") -> None:
        import_quietly()
        retain_freed_memory()  # as the engine's process does
        self.name, self.options, self.rounds = name, options, rounds
        self.device = pick_device(options.device)
        use_device(self.device)
        self.dtype = pick_dtype(dtype, self.device, find_architecture_of(name, options))
        self.side = side or WORKING_SIDES.get(name, 512)
        components = build_components(name, self.dtype, self.device, options)
        self.model = build_model(name, components, self.device, self.dtype)
        graphs = open_graph_runtime(self.device) if options.cuda_graphs else None
        self.accelerator = Accelerator(options.accelerate, self.device, graphs=graphs)
        rng = np.random.default_rng(SEED)
        coarse = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((self.side, self.side), Image.Resampling.BICUBIC)).copy()
        self.frame = Frame(picture)

    def open_stream(self, model: Any = None, **values: Value) -> Stream:
        """Return a stream of ``model``, by default the bench's, with a full batch, compiled as the options say."""
        side = int(values.pop("side", self.side))
        stream = Stream(model or self.model, side, side, blocking=True)
        parameters: dict[str, Value] = {"/prompt": PROMPT, "/seed": SEED}
        parameters |= {"/" + name.replace("_", "/"): value for name, value in values.items()}
        stream.apply(Snapshot(parameters))
        for _ in range(2 * len(stream.plan.steps)):
            stream.step([self.frame] * stream.snapshot.diffusion.buffer)
        self.accelerator.compile_all(
            lambda: [*self.model.compiled_modules, *stream.adapters.compiled_modules],
            count_rows(stream.snapshot.diffusion, len(stream.plan.steps)),
        )
        return stream

    def describe(self) -> Row:
        """Return the machine, the model and the versions."""
        on_gpu = self.device.type == "cuda"
        return {
            "date": time.strftime("%Y-%m-%d"),
            "model": self.name,
            "side": self.side,
            "dtype": _dtype_name(self.dtype),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else _processor_name(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": self.options.accelerate,
            "rounds": self.rounds,
            "seed": SEED,
        }

    def autopipeline(self, steps: Sequence[int]) -> Iterator[Row]:
        """Compare a live frame with a picture of ``AutoPipelineForImage2Image`` on the same weights.

        The baseline runs in diffusers' usual precision and in Phosphene's.
        """
        usual = torch.float16 if self.device.type == "cuda" else torch.float32
        pixels = np.ascontiguousarray(self.frame.pixels[..., :3])
        dtypes = list(dict.fromkeys((usual, self.dtype)))
        with DiffusersBaseline(self.name, dtypes, self.device, self.options, PROMPT, SEED) as baseline:
            for n in steps:
                schedule = _long_schedule(self.model.noise_schedule.last_timestep, n)
                stream = self.open_stream(steps=min(n, MAX_STEPS), schedule=schedule)
                runs: dict[str, Callable[[], object]] = {"phosphene": partial(stream.step, [self.frame])}
                runs |= {_dtype_name(dtype): partial(baseline, dtype, pixels, n) for dtype in dtypes}
                times = time_in_turns(runs, self.rounds, self.device)
                stream.close()
                for name in map(_dtype_name, dtypes):
                    row = {"steps": n, "baseline_dtype": name, "phosphene_dtype": _dtype_name(self.dtype)}
                    yield row | compare(times["phosphene"], times[name])

    def stream_batch(self, steps: Sequence[int]) -> Iterator[Row]:
        """Compare a frame of the stream batch with the same steps one after another, in denoiser calls a frame."""
        for n in steps:
            batched, sequential = self.open_stream(steps=n), self.open_stream(steps=n)
            sequential.restart()

            def run_sequentially(stream: Stream = sequential) -> None:
                output = stream.step([self.frame])
                while not output:
                    output = stream.step([])

            runs: dict[str, Callable[[], object]] = {
                "phosphene": partial(batched.step, [self.frame]),
                "baseline": run_sequentially,
            }
            times = time_in_turns(runs, self.rounds, self.device)
            for stream in (batched, sequential):
                stream.close()
            yield {"steps": n} | compare_work("calls", 1, n) | compare(times["phosphene"], times["baseline"])

    def guidance(self, steps: Sequence[int]) -> Iterator[Row]:
        """Compare the denoiser's time under residual guidance with full guidance, in denoiser rows a call."""
        for n in steps:
            streams = {
                mode: self.open_stream(steps=n, guidance=1.5, guidance_mode=mode)
                for mode in ("full", "self", "onetime")
            }
            with torch.inference_mode():
                runs = {mode: _enter_frame(stream, self.frame) for mode, stream in streams.items()}
                times = time_in_turns(runs, self.rounds, self.device)
            for mode in ("self", "onetime"):
                work = compare_work("rows", streams[mode].stats.rows, streams["full"].stats.rows)
                yield {"steps": n, "mode": mode} | work | compare(times[mode], times["full"])
            for stream in streams.values():
                stream.close()

    def similarity(self, clips: Mapping[str, Sequence[Pixels]]) -> Iterator[Row]:
        """Count the ticks that the filter skips on each clip, and compare the engine's time with the filter off.

        The time is the process's CPU time on a CPU, wall clock on a GPU.
        """
        for name, pictures in clips.items():
            (baseline_busy, _, baseline_joules), (busy, skipped, joules) = (
                self._play(pictures, on) for on in (False, True)
            )
            row = {
                "clip": name,
                "frames": len(pictures),
                "skipped": skipped,
                "phosphene_s": round(busy, 2),
                "baseline_s": round(baseline_busy, 2),
            }
            if baseline_joules:
                row |= {"phosphene_joules": round(joules, 1), "baseline_joules": round(baseline_joules, 1)}
            yield row | {"saved": round(1 - busy / baseline_busy, 3), "ratio": round(baseline_busy / busy, 2)}

    def _play(self, pictures: Sequence[Pixels], similarity: bool) -> tuple[float, int, float]:
        """Return the seconds, the skipped ticks and the joules of a clip at two steps."""
        stream = self.open_stream(steps=2, similarity=similarity)
        stream.restart()
        meter = EnergyMeter(self.device)
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        start, skipped = clock(), 0
        for i, picture in enumerate(pictures):
            skipped += stream.step([Frame(picture, i, i / 30)]) is None
        busy = clock() - start
        joules = meter.joules()
        stream.close()
        return busy, skipped, joules

    def growth(self) -> Iterator[Row]:
        """Measure how a tick grows with size, steps, frame buffer and prompts, one at a time."""
        plans: list[tuple[str, Value, dict[str, Value]]] = [
            ("size", s, {"side": s}) for s in (self.side // 2, self.side, self.side * 2)
        ]
        plans += [("steps", n, {"steps": n}) for n in (1, 2, 4, 8)]
        plans += [("buffer", n, {"buffer": n}) for n in (1, 2, 4)]
        plans += [("prompts", n, {f"prompt_{i}": f"fire {i}" for i in range(2, n + 1)}) for n in (1, 2, 4)]
        for name, value, values in plans:
            stream = self.open_stream(**{"steps": 1} | values)
            frames = [self.frame] * stream.snapshot.diffusion.buffer
            times = time_in_turns({"tick": partial(stream.step, frames)}, self.rounds, self.device)["tick"]
            stream.close()
            yield {
                name: value,
                "ms": round(times.median_ms, 2),
                "spread_ms": round(times.spread_ms, 2),
                "ms_a_frame": round(times.median_ms / len(frames), 2),
            }

    def mfu(self, rows: Sequence[int]) -> Iterator[Row]:
        """Measure the denoiser's model FLOPs utilisation: its rate relative to that of large matrix products.

        Both run in turns. Each row is one denoiser call of so many rows.
        """
        product, operations = build_matrix_product(self.device, self.dtype)
        stream = self.open_stream(steps=1)
        shape, condition = self.model.latent_shape(self.side, self.side), stream.steering.conditioner.condition
        assert condition is not None
        for n in rows:
            x, t = torch.randn(n, *shape, device=self.device), torch.full((n,), 500.0, device=self.device)
            denoise = partial(self.model.denoise, x, t, condition)
            with torch.inference_mode():
                flops = self._count_flops(denoise)
                times = time_in_turns({"denoiser": denoise, "product": product}, self.rounds, self.device)
            rate = flops / (times["denoiser"].median_ms / 1000)
            device_rate = operations / (times["product"].percentile_ms(25) / 1000)
            yield {
                "rows": n,
                "ms": round(times["denoiser"].median_ms, 2),
                "gflop": round(flops / 1e9, 2),
                "gflops": round(rate / 1e9, 1),
                "device_gflops": round(device_rate / 1e9, 1),
                "mfu": round(rate / device_rate, 3),
            }
        stream.close()

    def _count_flops(self, denoise: Callable[[], object]) -> int:
        """Return the floating-point operations of a denoiser call, which must run uncompiled to be counted."""
        from torch.utils.flop_counter import FlopCounterMode

        denoiser = self.model.architecture.compiled_denoiser
        backends, denoiser.backends = denoiser.backends, {}
        with FlopCounterMode(display=False) as counter:
            denoise()
        denoiser.backends = backends
        return counter.get_total_flops()

    def overhead(self) -> Iterator[Row]:
        """Measure the part of a tick that is not encoding, denoising or decoding."""
        for n in (1, 4):
            stages = StageTimer(self.model)
            stream = self.open_stream(stages.model, steps=n)
            ticks: list[float] = []
            for _ in range(self.rounds + 2):
                start = time.perf_counter()
                stream.step([self.frame])
                ticks.append(time.perf_counter() - start)
            ticks = ticks[-self.rounds :]
            calls = zip(*(seconds[-self.rounds :] for seconds in stages.seconds.values()), strict=True)
            work = [sum(seconds) for seconds in calls]
            beyond = [(tick - seconds) / tick for tick, seconds in zip(ticks, work, strict=True)]
            yield {
                "what": "engine",
                "steps": n,
                "tick_ms": round(Timings(ticks).median_ms, 2),
                "work_ms": round(Timings(work).median_ms, 2),
                "beyond": round(float(np.median(beyond)), 3),
            }
            stream.close()


def _enter_frame(stream: Stream, frame: Frame) -> Callable[[], Any]:
    """Enter ``frame`` into a full batch and return the denoiser call of that batch, which can be repeated."""
    stream._encode([frame], stream._prepare([frame]))
    return stream._denoise


def _long_schedule(last: int, n: int) -> str:
    """Return the timesteps of strength 0.5 for more steps than the parameter takes; empty for fewer."""
    return " ".join(str(round((last + 1) / 2 * (n - i) / n)) for i in range(n)) if n > MAX_STEPS else ""


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
