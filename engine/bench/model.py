"""What a model's figures are: against diffusers, batched against one after another, guided, filtered, grown."""

from __future__ import annotations

import copy
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

from engine.bench.diffusers_baseline import Peer
from engine.bench.measure import Row, Times, compared, in_turns, matrix_product
from engine.bench.random_weights import SIDES, parts
from engine.compile import Accelerator
from engine.diffusion.stream import Stream
from engine.models import Model, pick_device, pick_dtype
from engine.models.hf_imports import import_quietly
from engine.models.loading import build_model
from engine.runtime.allocator import retain_freed_memory
from engine.shared.frame import Frame, Pixels
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

PROMPT = "neon tunnel, magenta and cyan"
SEED = 1


class Bench:
    """One model on one device. ``rounds`` timed runs each."""

    def __init__(self, name: str, options: EngineOptions, rounds: int, side: int = 0, dtype: str = "auto") -> None:
        import_quietly()
        retain_freed_memory()  # as the engine's process does
        self.name, self.options, self.rounds = name, options, rounds
        self.device = pick_device(options.device)
        self.dtype = pick_dtype(dtype, self.device)
        self.side = side or SIDES.get(name, 512)
        self.model = build_model(name, parts(name, self.dtype, self.device, options), self.device, self.dtype)
        self.accelerator = Accelerator(options.accelerate, self.device)
        rng = np.random.default_rng(SEED)
        coarse = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((self.side, self.side), Image.Resampling.BICUBIC)).copy()
        self.frame = Frame(picture)

    def stream(self, model: Any = None, **values: Value) -> Stream:
        """A stream that is full and compiled, where it is to be."""
        side = int(values.pop("side", self.side))
        stream = Stream(model or self.model, side, side, blocking=True)
        names: dict[str, Value] = {"/prompt": PROMPT, "/seed": SEED}
        names |= {"/" + name.replace("_", "/"): value for name, value in values.items()}
        stream.apply(Snapshot(names))
        for _ in range(2 * len(stream.plan.steps)):
            stream.step([self.frame] * stream.snapshot.diffusion.buffer)
        self.accelerator.compile_all(lambda: [*self.model.compiled_modules, *stream.adapters.compiled_modules])
        return stream

    def row(self) -> Row:
        """What is measured, where, with what."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _processor()
        return {
            "date": time.strftime("%Y-%m-%d"), "model": self.name, "side": self.side, "dtype": _name(self.dtype), "device": device,
            "threads": torch.get_num_threads(), "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "torch": torch.__version__, "diffusers": diffusers.__version__, "accelerate": self.options.accelerate, "rounds": self.rounds,
            "seed": SEED,
        }  # fmt: skip

    def autopipeline(self, steps: Sequence[int]) -> Iterator[Row]:
        """A live frame against ``AutoPipelineForImage2Image`` on the same weights, in its own precision and in ours."""
        own = torch.float16 if self.device.type == "cuda" else torch.float32
        pixels = np.ascontiguousarray(self.frame.pixels[..., :3])
        dtypes = list(dict.fromkeys((own, self.dtype)))
        with Peer(self.name, dtypes, self.device, self.options, PROMPT, SEED) as peer:
            for n in steps:
                stream = self.stream(steps=min(n, 8), schedule=_schedule(self.model.noise_schedule.last_timestep, n))
                runs: dict[str, Callable[[], object]] = {"ours": partial(stream.step, [self.frame])}
                runs |= {_name(dtype): partial(peer, dtype, pixels, n) for dtype in dtypes}
                times = in_turns(runs, self.rounds, self.device)
                stream.close()
                for name in map(_name, dtypes):
                    yield {"steps": n, "theirs_dtype": name, "ours_dtype": _name(self.dtype)} | compared(
                        times["ours"], times[name]
                    )

    def stream_batch(self, steps: Sequence[int]) -> Iterator[Row]:
        """A frame of the stream batch against the same steps one after another."""
        for n in steps:
            batched, alone = self.stream(steps=n), self.stream(steps=n)
            alone.restart()

            def one_by_one(stream: Stream = alone) -> None:
                out = stream.step([self.frame])
                while not out:
                    out = stream.step([])

            times = in_turns(
                {"ours": partial(batched.step, [self.frame]), "theirs": one_by_one}, self.rounds, self.device
            )
            for stream in (batched, alone):
                stream.close()
            yield {"steps": n} | compared(times["ours"], times["theirs"])

    def guidance(self, steps: Sequence[int]) -> Iterator[Row]:
        """The denoiser's time under residual guidance against full guidance."""
        for n in steps:
            streams = {
                mode: self.stream(steps=n, guidance=1.5, guidance_mode=mode) for mode in ("full", "self", "onetime")
            }
            with torch.inference_mode():
                runs = {mode: _denoising(stream, self.frame) for mode, stream in streams.items()}
                times = in_turns(runs, self.rounds, self.device)
            for mode in ("self", "onetime"):
                yield {
                    "steps": n,
                    "mode": mode,
                    "rows": streams[mode].stats.rows,
                    "rows_full": streams["full"].stats.rows,
                } | compared(times[mode], times["full"])
            for stream in streams.values():
                stream.close()

    def similarity(self, clips: Mapping[str, Sequence[Pixels]]) -> Iterator[Row]:
        """Ticks that the filter skips on each clip, and what that saves of the engine's time."""
        for name, pictures in clips.items():
            spent: dict[bool, tuple[float, int, float]] = {}
            for on in (False, True):
                stream = self.stream(steps=2, similarity=on)
                stream.restart()
                meter = _Energy(self.device)
                start, skipped = time.process_time(), 0
                wall = time.perf_counter()
                for i, picture in enumerate(pictures):
                    skipped += stream.step([Frame(picture, i, i / 30)]) is None
                busy = time.process_time() - start if self.device.type == "cpu" else time.perf_counter() - wall
                spent[on] = busy, skipped, meter.joules()
                stream.close()
            (plain, _, joules), (busy, skipped, less) = spent[False], spent[True]
            row = {
                "clip": name,
                "frames": len(pictures),
                "skipped": skipped,
                "ours_s": round(busy, 2),
                "theirs_s": round(plain, 2),
            }
            if joules:
                row |= {"joules": round(less, 1), "joules_without": round(joules, 1)}
            yield row | {"saved": round(1 - busy / plain, 3), "ratio": round(plain / busy, 2)}

    def growth(self) -> Iterator[Row]:
        """How a tick grows with size, steps, frame buffer and prompts, one at a time."""
        plans: list[tuple[str, Value, dict[str, Value]]] = [
            ("size", s, {"side": s}) for s in (self.side // 2, self.side, self.side * 2)
        ]
        plans += [("steps", n, {"steps": n}) for n in (1, 2, 4, 8)]
        plans += [("buffer", n, {"buffer": n}) for n in (1, 2, 4)]
        plans += [("prompts", n, {f"prompt_{i}": f"fire {i}" for i in range(2, n + 1)}) for n in (1, 2, 4)]
        for what, value, values in plans:
            stream = self.stream(**{"steps": 1} | values)
            frames = [self.frame] * stream.snapshot.diffusion.buffer
            times = in_turns({"tick": partial(stream.step, frames)}, self.rounds, self.device)["tick"]
            stream.close()
            yield {
                what: value,
                "ms": round(times.median, 2),
                "spread_ms": round(times.spread, 2),
                "ms_a_frame": round(times.median / len(frames), 2),
            }

    def mfu(self, rows: Sequence[int]) -> Iterator[Row]:
        """The share of the rate of large matrix products, made in turns with it, that the denoiser reaches on this device."""
        from torch.utils.flop_counter import FlopCounterMode

        product, operations = matrix_product(self.device, self.dtype)
        stream = self.stream(steps=1)
        shape, condition = self.model.latent_shape(self.side, self.side), stream.steering.conditioner.condition
        assert condition is not None
        for n in rows:
            x, t = torch.randn(n, *shape, device=self.device), torch.full((n,), 500.0, device=self.device)
            with torch.inference_mode():
                run, self.model.architecture.compiled_denoiser.backends = (
                    self.model.architecture.compiled_denoiser.backends,
                    {},
                )
                with FlopCounterMode(display=False) as counter:
                    self.model.denoise(x, t, condition)
                self.model.architecture.compiled_denoiser.backends = run
                runs: dict[str, Callable[[], object]] = {
                    "denoiser": partial(self.model.denoise, x, t, condition),
                    "product": product,
                }
                times = in_turns(runs, self.rounds, self.device)
            time_, rate = times["denoiser"], operations / (times["product"].percentile(25) / 1000)
            reached = counter.get_total_flops() / (time_.median / 1000)
            yield {"rows": n, "ms": round(time_.median, 2), "gflop": round(counter.get_total_flops() / 1e9, 2),
                   "gflops": round(reached / 1e9, 1), "device_gflops": round(rate / 1e9, 1), "mfu": round(reached / rate, 3)}  # fmt: skip
        stream.close()

    def overhead(self) -> Iterator[Row]:
        """What a tick costs beyond encoding, denoising and decoding."""
        for n in (1, 4):
            stages = Stages(self.model)
            stream = self.stream(stages.model, steps=n)
            whole = []
            for _ in range(self.rounds + 2):
                start = time.perf_counter()
                stream.step([self.frame])
                whole.append(time.perf_counter() - start)
            work = [
                sum(parts)
                for parts in zip(
                    *(stages.taken[name][-self.rounds :] for name in ("encode", "denoise", "decode")), strict=True
                )
            ]
            beyond = [(w - p) / w for w, p in zip(whole[-self.rounds :], work, strict=True)]
            tick = Times(whole[-self.rounds :]).median
            yield {"what": "engine", "steps": n, "tick_ms": round(tick, 2), "work_ms": round(Times(work).median, 2),
                   "beyond": round(float(np.median(beyond)), 3)}  # fmt: skip
            stream.close()


class Stages:
    """A copy of ``model`` that takes the time of its three calls, one entry a tick."""

    def __init__(self, model: Model) -> None:
        self.taken: dict[str, list[float]] = {name: [] for name in ("encode", "denoise", "decode")}
        self.model = copy.copy(model)
        for name, times in self.taken.items():
            setattr(self.model, name, self._timed(getattr(model, name), times, model.device))

    def _timed(self, call: Callable[..., Any], times: list[float], device: torch.device) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
            return result

        return timed


class _Energy:
    """What an NVIDIA GPU has used since it was made, by its own counter; 0 elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        if device.type == "cuda":
            try:
                import pynvml

                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
                self._read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
                self._start = self._read()
            except (ImportError, OSError, RuntimeError):
                self._handle = None

    def joules(self) -> float:
        return self._read() - self._start if self._handle is not None else 0.0


def _denoising(stream: Stream, frame: Frame) -> Callable[[], object]:
    """The denoiser call of a full batch whose newest frame has just entered, to be made over and over."""
    stream._encode([frame], stream._prepare([frame]))
    return stream._denoise


def _schedule(last: int, n: int) -> str:
    """Timesteps for more steps than the parameter goes to, as strength 0.5 would have them; empty where it does."""
    return " ".join(str(round((last + 1) / 2 * (n - i) / n)) for i in range(n)) if n > 8 else ""


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
