"""Makes the parts of a running stream fast: found in the cache or built beside it, checked, and put in the place of the modules."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

from engine.compile import tensorrt
from engine.compile.artifact import ENDINGS, CompiledArtifact
from engine.compile.dispatch import Backend, CallSignature, CompiledModule, example_inputs, tree_unflatten
from engine.runtime.threads import limit_to_one_thread
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
#: Part of the cache's key: raised when what is built, or how it is called, changes.
FORMAT = 9
#: How far a fast run may be from the module, as a share of the module's output (root mean square), by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.04}
#: Seconds after which a build is given up.
LONGEST = 1800.0
#: Seconds that a builder waits for something to be wanted.
EXPECTED = 30.0


class Accelerator:
    """Runs on one device for one process. ``poll`` belongs to the frame loop and never waits; the work is done on a thread.

    ``state`` says where it is, in words; ``notes`` are lines for the user, among them why a part stays as it is.
    """

    def __init__(self, kind: str, device: torch.device, folder: Path | None = None) -> None:
        if kind not in ACCELERATORS:
            raise InvalidValue(f"--accelerate takes {', '.join(ACCELERATORS)}, got {kind!r}")
        self._kind, self._device = kind, device
        self._folder = folder or cache_folder()
        self._thread: threading.Thread | None = None
        self._builder: subprocess.Popen[bytes] | None = None
        self._since, self._wait_until = time.monotonic(), 0.0
        self._threads = torch.get_num_threads()
        self.state, self.notes = "eager", list[str]()
        lacking = missing_requirement(device, kind) if kind != "eager" else ""
        self.enabled = kind != "eager" and not lacking
        if lacking:
            self.notes.append(f"not accelerated: {lacking}")

    def start_builder_early(self) -> None:
        """Starts the builder, where nothing was ever built: it is ready by the time that something is wanted, if that is soon."""
        if not self.enabled or any(self._folder.glob("*.json")):
            return
        try:
            self._start()
        except OSError as error:
            log.warning("no builder can be started: %s", error)
        self._wait_until = time.monotonic() + EXPECTED

    def poll(self, parts: Iterable[CompiledModule]) -> None:
        """Begins the next piece of work where a part wants one and none is under way."""
        if not self.enabled:
            return
        self._share_cores()
        if self._thread is not None and self._thread.is_alive():
            return
        parts = list(parts)
        # A call that was under way while its shape was equipped or refused still asks for it.
        part = next((part for part in parts if part.requested not in (None, *part.backends, *part.rejected)), None)
        if part is None:
            if time.monotonic() > self._wait_until or any(part.backends or part.rejected for part in parts):
                self._dismiss()
                self._share_cores()
            if self.state.startswith("compiling"):
                self.state = "compiled" if any(part.backends for part in parts) else "eager"
                self.notes.append(f"{self.state}, {time.monotonic() - self._since:.0f} s after it was asked for")
            return
        if not self.state.startswith("compiling"):
            self._since = time.monotonic()
        shape, part.requested = part.requested, None
        assert shape is not None
        self.state = f"compiling {part.name}"
        self._thread = threading.Thread(target=self._equip, args=(part, shape), name="accelerate", daemon=True)
        self._thread.start()

    def compile_all(self, parts: Callable[[], Iterable[CompiledModule]]) -> None:
        """Does everything that the parts want now, and waits for it."""
        while self.enabled:
            self.poll(parts())
            if self._thread is None or not self.state.startswith("compiling"):
                return
            self._thread.join()

    def close(self) -> None:
        """Ends a build that is under way."""
        self.enabled = False
        if self._builder is not None:
            self._builder.kill()
        if self._thread is not None:
            self._thread.join(3)
        self._dismiss()
        self._share_cores()

    def _share_cores(self) -> None:
        """Leaves a core to the compiler while it works: two threads on one core wait for each other at every operation."""
        threads = (
            max(1, self._threads - 1) if self._builder is not None and self._device.type == "cpu" else self._threads
        )
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _equip(self, part: CompiledModule, shape: CallSignature) -> None:
        limit_to_one_thread()
        try:
            part.backends[shape] = self._checked(part, shape, self._found(part, shape))
        except Exception as error:  # whatever it is, the stream goes on as it was
            part.rejected.add(shape)
            if self.enabled:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self.notes.append(f"the {part.name} is not compiled and goes on as it is: {reason[0]}")

    def _found(self, part: CompiledModule, shape: CallSignature) -> Backend:
        """A fast run from the cache, built first where it is not there. Raises RuntimeError."""
        from engine.compile.builder import recipe

        dtype = next(part.module.parameters()).dtype
        wish = recipe(part.name, part.module, shape, dtype, self._device, self._threads)
        engine = self._kind == "tensorrt"
        wide = wish | {"tensors": tensorrt.spans(wish["tensors"]), "engine": tensorrt.version()} if engine else wish
        key = json.dumps([wide, FORMAT, *_surroundings(self._device)], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        version = part.version if engine else None
        run = self._kept(path, part)
        if run is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._build(wish, path)
            run = CompiledArtifact(path, part)
        return Backend(run, tensorrt.MAX_ROWS, version) if engine else Backend(run)

    def _kept(self, path: Path, part: CompiledModule) -> CompiledArtifact | None:
        """What the cache has, where it can be used; what is damaged is thrown away."""
        if not path.exists():
            return None
        try:
            return CompiledArtifact(path, part)
        except Exception as error:
            log.warning("%s is built again: it is damaged (%s)", path.name, str(error).splitlines()[0])
            for ending in ENDINGS:
                path.with_suffix(ending).unlink(missing_ok=True)
            return None

    def _start(self) -> subprocess.Popen[bytes]:
        """The builder, started where none runs."""
        if self._builder is not None and self._builder.poll() is not None:
            self._dismiss()
        if self._builder is None:
            command = [sys.executable, "-m", "engine.compile.builder"]
            self._builder = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._builder

    def _build(self, wish: dict[str, Any], path: Path) -> None:
        builder = self._start()
        assert builder.stdin is not None
        assert builder.stdout is not None
        line = {"recipe": wish, "path": str(path), "engine": self._kind == "tensorrt"}
        builder.stdin.write(json.dumps(line).encode() + b"\n")
        builder.stdin.flush()
        timer = threading.Timer(LONGEST, builder.kill)
        timer.start()
        answer = builder.stdout.readline().decode(errors="replace")
        timer.cancel()
        if not answer.endswith("\n"):
            self._dismiss()
            raise RuntimeError("the compiler died")
        if answer.strip():
            raise RuntimeError(answer.strip())

    def _dismiss(self) -> None:
        """Ends the builder."""
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.kill()
            builder.wait()
            for pipe in (builder.stdin, builder.stdout):
                if pipe is not None:
                    pipe.close()

    @torch.inference_mode()
    def _checked(self, part: CompiledModule, shape: CallSignature, run: Backend) -> Backend:
        """``run``, where it gives what the module gives. Raises RuntimeError."""
        tensors = example_inputs(shape, 2, self._device)
        arguments, options = tree_unflatten(shape.structure, iter(tensors))
        expected, found = _flat(part.module(*arguments, **options)), _flat(run.call(tensors))
        error = ((found - expected).square().mean() / expected.square().mean().clamp(min=1e-12)).sqrt().item()
        tolerance = TOLERANCE[next(part.module.parameters()).dtype]
        if not error <= tolerance:
            raise RuntimeError(f"its output is off by {error:.1%}, more than {tolerance:.1%}")
        return run


def cache_folder() -> Path:
    """Where what was compiled is kept: in PHOSPHENE_CACHE, or where the system keeps such things."""
    own = os.environ.get("PHOSPHENE_CACHE")
    return (Path(own) if own else user_cache_path("phosphene", appauthor=False)) / "compiled"


def missing_requirement(device: torch.device, kind: str = "compile") -> str:
    """What is not here and is needed to accelerate; empty where all is."""
    if kind == "tensorrt":
        return tensorrt.missing_requirement(device)
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8):
        return "torch 2.8 or newer is needed"
    if device.type not in ("cpu", "cuda"):
        return f"{device.type} is not supported"
    compiler = "cl" if platform.system() == "Windows" else "clang++" if platform.system() == "Darwin" else "g++"
    if shutil.which(compiler) is None:
        mends = {"cl": "Visual Studio's build tools", "clang++": "xcode-select --install", "g++": "apt install g++"}
        return f"there is no C++ compiler {compiler}; {mends[compiler]}"
    return ""


def _surroundings(device: torch.device) -> tuple[str, ...]:
    """What a compiled part depends on beside the part: libraries and machine."""
    import diffusers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return torch.__version__, diffusers.__version__, platform.system(), platform.machine(), name


def _flat(value: Any) -> Tensor:
    tensors = [value] if isinstance(value, Tensor) else list(value)
    return torch.cat(
        [_flat(tensor) if not isinstance(tensor, Tensor) else tensor.float().flatten() for tensor in tensors]
    )
