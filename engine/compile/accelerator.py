"""The accelerator: compile the components of a running stream, verify the result, and swap it in for the modules."""

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
from engine.compile.artifact import BUILD_SUFFIXES, CompiledArtifact
from engine.compile.dispatch import Backend, CallSignature, CompiledModule, example_inputs, tree_unflatten
from engine.runtime.device_errors import is_out_of_memory
from engine.runtime.threads import limit_to_one_thread
from engine.shared.errors import first_line
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
#: Part of the cache key. Raise it when the files of a build, or how they are run, change.
FORMAT = 10
#: Largest relative error (root mean square) of a backend's output against the module's, by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.04}
#: Seconds until a build is cancelled.
BUILD_TIMEOUT_SECONDS = 1800.0
#: Comparisons in a row that may meet weights in motion, and seconds until the next ones.
MAX_COMPARISONS, CHANGED_RETRY_SECONDS = 3, 5.0
#: Seconds until another try where the memory was exhausted.
MEMORY_RETRY_SECONDS = 60.0
#: Seconds that a builder process started early waits for its first request.
IDLE_BUILDER_SECONDS = 30.0


class WeightsChanged(Exception):
    """The weights of a component changed while its backend was built or verified."""


class Accelerator:
    """Compiler of components for one device and one process.

    ``poll`` runs in the frame loop and never blocks; a thread does the work.
    ``state`` is the current state in words. ``notes`` are lines for the user, such as why a component is not compiled.
    """

    def __init__(self, kind: str, device: torch.device, folder: Path | None = None) -> None:
        if kind not in ACCELERATORS:
            raise InvalidValue(f"--accelerate takes {', '.join(ACCELERATORS)}, got {kind!r}")
        self._kind, self._device = kind, device
        self._folder = folder or cache_folder()
        self._thread: threading.Thread | None = None
        self._builder: subprocess.Popen[bytes] | None = None
        self._started_at, self._keep_builder_until = time.monotonic(), 0.0
        self._threads = torch.get_num_threads()
        self._retry_at: dict[tuple[int, CallSignature], float] = {}  # by component, in monotonic seconds
        self.state, self.notes = "eager", list[str]()
        missing = missing_requirement(device, kind) if kind != "eager" else ""
        self.enabled = kind != "eager" and not missing
        if missing:
            self.notes.append(f"not accelerated: {missing}")

    def start_builder_early(self) -> None:
        """Start the builder process if the cache is empty, so that it is ready for the first request."""
        if not self.enabled or any(self._folder.glob("*.json")):
            return
        try:
            self._ensure_builder()
        except OSError as error:
            log.warning("cannot start the builder process: %s", error)
        self._keep_builder_until = time.monotonic() + IDLE_BUILDER_SECONDS

    def poll(self, components: Iterable[CompiledModule]) -> None:
        """Start the next piece of work if a component requests a backend and none is in progress."""
        if not self.enabled:
            return
        self._share_cores()
        if self._thread is not None and self._thread.is_alive():
            return
        components = list(components)
        # A call that was running while its signature was served or rejected still requests it.
        pending = (one for one in components if one.requested not in (None, *one.backends, *one.rejected))
        component = next((one for one in pending if not self._is_deferred(one)), None)
        if component is None:
            was_served = any(one.backends or one.rejected for one in components)
            if was_served or time.monotonic() > self._keep_builder_until:
                self._stop_builder()
                self._share_cores()
            if self.state.startswith("compiling"):
                self.state = "compiled" if any(one.backends for one in components) else "eager"
                now = time.monotonic()
                if not any(now < time_of_retry for time_of_retry in self._retry_at.values()):
                    self.notes.append(f"{self.state}, {now - self._started_at:.0f} s after the first request")
            return
        if not self.state.startswith("compiling"):
            self._started_at = time.monotonic()
        signature, component.requested = component.requested, None
        assert signature is not None
        self.state = f"compiling {component.name}"
        self._thread = threading.Thread(
            target=self._install_backend, args=(component, signature), name="accelerate", daemon=True
        )
        self._thread.start()

    def compile_all(self, components: Callable[[], Iterable[CompiledModule]]) -> None:
        """Serve everything that the components request now, and wait for it."""
        while self.enabled:
            self.poll(components())
            if self._thread is None or not self.state.startswith("compiling"):
                return
            self._thread.join()

    def close(self) -> None:
        """Cancel a build in progress."""
        self.enabled = False
        if self._builder is not None:
            self._builder.kill()
        if self._thread is not None:
            self._thread.join(3)
        self._stop_builder()
        self._share_cores()

    def _share_cores(self) -> None:
        """Leave a core to a working compiler: two threads on one core wait for each other at every operation."""
        is_sharing = self._builder is not None and self._device.type == "cpu"
        threads = max(1, self._threads - 1) if is_sharing else self._threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _is_deferred(self, component: CompiledModule) -> bool:
        """Return whether the signature that the component requests waits for another try."""
        signature = component.requested
        return signature is not None and time.monotonic() < self._retry_at.get((id(component), signature), 0.0)

    def _install_backend(self, component: CompiledModule, signature: CallSignature) -> None:
        """Give the component a verified backend for the signature, or mark that as rejected. Runs on the thread.

        Where the weights change meanwhile, or the memory is short, it is tried again later.
        """
        limit_to_one_thread()
        types = [parameter.dtype for parameter in component.module.parameters()]
        try:
            backend = self._verify(component, signature, self._load_or_build(component, signature))
            if types != [parameter.dtype for parameter in component.module.parameters()]:
                raise WeightsChanged
            component.backends[signature] = backend
        except WeightsChanged:
            self._retry_at[id(component), signature] = time.monotonic() + CHANGED_RETRY_SECONDS
        except Exception as error:  # whatever it is, the stream keeps running uncompiled
            was_deferred = (id(component), signature) in self._retry_at
            if is_out_of_memory(error):
                self._retry_at[id(component), signature] = time.monotonic() + MEMORY_RETRY_SECONDS
            else:
                component.rejected.add(signature)
            if self.enabled and not (was_deferred and is_out_of_memory(error)):
                self.notes.append(f"the {component.name} runs uncompiled: {first_line(error)}")

    def _load_or_build(self, component: CompiledModule, signature: CallSignature) -> Backend:
        """Return a backend from the cache, building it first if it is not there. Raises RuntimeError."""
        from engine.compile.builder import make_recipe

        dtype = next(component.module.parameters()).dtype
        recipe = make_recipe(component.name, component.module, signature, dtype, self._device, self._threads)
        is_tensorrt = self._kind == "tensorrt"
        shared: dict[str, Any] = {}  # what TensorRT builds of several sizes have in common
        if is_tensorrt:
            shared = {"tensors": tensorrt.widen_sizes(recipe["tensors"]), "engine": tensorrt.version()}
        key = json.dumps([recipe | shared, FORMAT, *_environment(self._device)], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        version = component.version if is_tensorrt else None
        artifact = self._load_cached(path, component)
        if artifact is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._build(recipe, path)
            artifact = CompiledArtifact(path, component)
        return Backend(artifact, tensorrt.MAX_ROWS, version) if is_tensorrt else Backend(artifact)

    def _load_cached(self, path: Path, component: CompiledModule) -> CompiledArtifact | None:
        """Load a build from the cache. Delete it and return None if it is damaged."""
        if not path.exists():
            return None
        try:
            return CompiledArtifact(path, component)
        except Exception as error:
            log.warning("rebuilding %s, which is damaged: %s", path.name, first_line(error))
            for suffix in BUILD_SUFFIXES:
                path.with_suffix(suffix).unlink(missing_ok=True)
            return None

    def _ensure_builder(self) -> subprocess.Popen[bytes]:
        """Return the builder process, starting it if none is running. Raises OSError."""
        if self._builder is not None and self._builder.poll() is not None:
            self._stop_builder()
        if self._builder is None:
            command = [sys.executable, "-m", "engine.compile.builder"]
            self._builder = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._builder

    def _build(self, recipe: dict[str, Any], path: Path) -> None:
        """Send the recipe to the builder process and wait for its answer. Raises RuntimeError."""
        builder = self._ensure_builder()
        assert builder.stdin is not None
        assert builder.stdout is not None
        request = {"recipe": recipe, "path": str(path), "tensorrt": self._kind == "tensorrt"}
        builder.stdin.write(json.dumps(request).encode() + b"\n")
        builder.stdin.flush()
        timer = threading.Timer(BUILD_TIMEOUT_SECONDS, builder.kill)
        timer.start()
        answer = builder.stdout.readline().decode(errors="replace")
        timer.cancel()
        if not answer.endswith("\n"):
            self._stop_builder()
            raise RuntimeError("the builder process died")
        if answer.strip():
            raise RuntimeError(answer.strip())

    def _stop_builder(self) -> None:
        """End the builder process, if there is one."""
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.kill()
            builder.wait()
            for pipe in (builder.stdin, builder.stdout):
                if pipe is not None:
                    pipe.close()

    @torch.inference_mode()
    def _verify(self, component: CompiledModule, signature: CallSignature, backend: Backend) -> Backend:
        """Return ``backend`` if its output equals the module's within the tolerance.

        Raises RuntimeError, or WeightsChanged where the two ran on different weights, as while a LoRA fader moves.
        """
        tensors = example_inputs(signature, 2, self._device)
        arguments, options = tree_unflatten(signature.structure, iter(tensors))
        for _ in range(MAX_COMPARISONS):
            version = component.version
            expected = _flatten_output(component.module(*arguments, **options))
            actual = _flatten_output(backend.call(tensors))
            error = ((actual - expected).square().mean() / expected.square().mean().clamp(min=1e-12)).sqrt().item()
            tolerance = TOLERANCE[next(component.module.parameters()).dtype]
            if error <= tolerance:
                return backend
            if component.version == version and backend.version in (None, version):
                raise RuntimeError(f"output error of {error:.1%} exceeds {tolerance:.1%}")
        raise WeightsChanged


def cache_folder() -> Path:
    """Return the folder of builds: in PHOSPHENE_CACHE if that is set, else in the system's cache folder."""
    configured = os.environ.get("PHOSPHENE_CACHE")
    return (Path(configured) if configured else user_cache_path("phosphene", appauthor=False)) / "compiled"


def missing_requirement(device: torch.device, kind: str = "compile") -> str:
    """Return what is missing to compile for ``device`` and how to get it, empty if nothing is."""
    if kind == "tensorrt":
        return tensorrt.missing_requirement(device)
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8):
        return "torch 2.8 or newer is needed"
    if device.type not in ("cpu", "cuda"):
        return f"{device.type} is not supported"
    compiler = "cl" if platform.system() == "Windows" else "clang++" if platform.system() == "Darwin" else "g++"
    if shutil.which(compiler) is None:
        remedies = {"cl": "Visual Studio's build tools", "clang++": "xcode-select --install", "g++": "apt install g++"}
        return f"no C++ compiler ({compiler}); install it: {remedies[compiler]}"
    return ""


def _environment(device: torch.device) -> tuple[str, ...]:
    """Return what a build depends on apart from its recipe: library versions and the machine."""
    import diffusers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return torch.__version__, diffusers.__version__, platform.system(), platform.machine(), name


def _flatten_output(value: Any) -> Tensor:
    """Return all numbers of a nested output as one float32 vector."""
    if isinstance(value, Tensor):
        return value.float().flatten()
    return torch.cat([_flatten_output(item) for item in value])
