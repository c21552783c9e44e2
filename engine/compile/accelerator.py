"""The accelerator: compile the components of a running stream, verify the result, and swap it in for the modules."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from engine.compile import tensorrt
from engine.compile.artifact import BUILD_SUFFIXES, CompiledArtifact
from engine.compile.builder_process import BuilderDied, request_build, start_builder, stop_builder
from engine.compile.cuda_graphs import CaptureFailed, GraphedModule, GraphRuntime
from engine.compile.dispatch import (
    MAX_ROWS,
    Backend,
    CallSignature,
    CompiledModule,
    RowCounts,
    example_inputs,
)
from engine.compile.environment import (
    cache_folder,
    check_build_memory,
    describe_environment,
    describe_gpu_software,
)
from engine.compile.jobs import find_uncompiled, find_unrecorded, unrecorded_counts
from engine.compile.refusals import Refusals
from engine.compile.requirements import missing_requirement
from engine.compile.verification import MAX_COMPARISONS, TOLERANCE, WeightsChanged, verify
from engine.runtime.device import enter_background_thread
from engine.runtime.device_errors import is_out_of_memory
from engine.shared.errors import first_line
from engine.shared.options import ACCELERATORS
from engine.shared.parameter import InvalidValue

__all__ = ["MAX_COMPARISONS", "TOLERANCE", "Accelerator", "cache_folder", "missing_requirement"]
log = logging.getLogger(__name__)
#: Part of the cache key. Raise it when the files of a build, or how they are run, change.
FORMAT = 10
#: Seconds until another try where the weights moved, and where the memory was exhausted.
CHANGED_RETRY_SECONDS, MEMORY_RETRY_SECONDS = 5.0, 60.0
#: Seconds that a builder process started early waits for its first request.
IDLE_BUILDER_SECONDS = 30.0


class Accelerator:
    """Compiler of components for one device and one process.

    With ``graphs`` each component is first replayed from CUDA graphs of its own, which needs no compiler and is ready
    at once; a compiled backend takes over later, where one can be built. ``poll`` runs in the frame loop and never
    blocks; a thread does the work.

    ``state`` is the current state in words. ``notes`` are lines for the user, such as why a component is not compiled.
    ``restart_reason`` is set where the process must begin again without graphs, see ``GraphRuntime``.
    """

    def __init__(
        self, kind: str, device: torch.device, folder: Path | None = None, graphs: GraphRuntime | None = None
    ) -> None:
        if kind not in ACCELERATORS:
            raise InvalidValue(f"--accelerate takes {', '.join(ACCELERATORS)}, got {kind!r}")
        self._kind, self._device = kind, device
        self._folder = folder or cache_folder()
        self._refusals = Refusals(self._folder)
        self._graphs = graphs if kind != "eager" else None
        self._thread: threading.Thread | None = None
        self._builder: subprocess.Popen[bytes] | None = None
        self._is_working = False
        self._started_at, self._keep_builder_until = time.perf_counter(), 0.0
        self._threads = torch.get_num_threads()
        self._retry_at: dict[tuple[int, CallSignature], float] = {}  # by component, in monotonic seconds
        self.state, self.notes, self.restart_reason = "eager", list[str](), ""
        needs_nothing = kind == "eager" or (kind == "graphs" and self._graphs is not None)
        missing = "" if needs_nothing else missing_requirement(device, kind)
        self._compiles = kind != "graphs" and not (missing and self._graphs is not None)
        self.enabled = kind != "eager" and (not missing or self._graphs is not None)
        if missing:
            self.notes.append(f"CUDA graphs alone: {missing}" if self.enabled else f"not accelerated: {missing}")

    def start_builder_early(self) -> None:
        """Start the builder process if the cache is empty, so that it is ready for the first request."""
        if not self.enabled or not self._compiles or any(self._folder.glob("*.json")):
            return
        try:
            self._ensure_builder()
        except OSError as error:
            log.warning("cannot start the builder process: %s", error)
        self._keep_builder_until = time.perf_counter() + IDLE_BUILDER_SECONDS

    def poll(self, components: Iterable[CompiledModule], rows: Mapping[str, RowCounts] = MappingProxyType({})) -> None:
        """Start the next piece of work if a component needs one and none is in progress.

        ``rows`` are the numbers of rows of each component's calls, by its name: graphs are recorded for all of them.
        """
        if not self.enabled:
            return
        self._share_cores()
        if self._thread is not None and self._thread.is_alive():
            return
        components = list(components)
        job = self._next_job(components, rows)
        if job is None:
            self._rest(components)
            return
        if not self._is_working:
            self._is_working, self._started_at = True, time.perf_counter()
        self.state, work = job
        self._thread = threading.Thread(target=self._run_job, args=(work,), name="accelerate", daemon=True)
        self._thread.start()

    def compile_all(
        self,
        components: Callable[[], Iterable[CompiledModule]],
        rows: Mapping[str, RowCounts] = MappingProxyType({}),
        seconds: float = 1e9,
    ) -> None:
        """Serve everything that the components request now, and wait for it, but no longer than ``seconds``."""
        end = time.perf_counter() + seconds
        while self.enabled and time.perf_counter() < end:
            self.poll(components(), rows)
            if self._thread is None or not self._is_working:
                return
            self._thread.join(min(end - time.perf_counter(), threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Cancel a build in progress."""
        self.enabled = False
        if self._builder is not None:
            self._builder.kill()
        if self._thread is not None:
            self._thread.join(3)
        self._stop_builder()
        self._share_cores()

    def _next_job(
        self, components: Sequence[CompiledModule], rows: Mapping[str, RowCounts]
    ) -> tuple[str, Callable[[], None]] | None:
        """Return the state and the work that comes next: all graphs, which take a second each, before any build."""
        for component in components:
            counts = rows.get(component.name, RowCounts())
            signature = find_unrecorded(component, counts) if self._graphs is not None else None
            if signature is not None and not self._is_deferred(component, signature):
                return f"recording {component.name}", partial(self._record_graphs, component, signature, counts)
        for component in components:
            counts = rows.get(component.name, RowCounts())
            signature = find_uncompiled(component, counts) if self._compiles else None
            if signature is not None and not self._is_deferred(component, signature):
                component.requested = None
                return f"compiling {component.name}", partial(self._install_backend, component, signature, counts)
        return None

    def _rest(self, components: Sequence[CompiledModule]) -> None:
        """End the builder process where nothing is to be done, and report what was."""
        backends = [backend for component in components for backend in component.backends.values()]
        was_served = bool(backends) or any(component.rejected for component in components)
        if was_served or time.perf_counter() > self._keep_builder_until:
            self._stop_builder()
            self._share_cores()
        if self._is_working:
            self._is_working = False
            is_compiled = any(not backend.is_provisional for backend in backends)
            self.state = "compiled" if is_compiled else "graphs" if backends else "eager"
            now = time.perf_counter()
            if not any(now < time_of_retry for time_of_retry in self._retry_at.values()):
                self.notes.append(f"{self.state}, {now - self._started_at:.0f} s after the first request")

    def _share_cores(self) -> None:
        """Leave a core to a working compiler: two threads on one core wait for each other at every operation."""
        is_sharing = self._builder is not None and self._device.type == "cpu"
        threads = max(1, self._threads - 1) if is_sharing else self._threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _is_deferred(self, component: CompiledModule, signature: CallSignature) -> bool:
        """Return whether the signature waits for another try."""
        return time.perf_counter() < self._retry_at.get((id(component), signature), 0.0)

    def _run_job(self, work: Callable[[], None]) -> None:
        """Run the work on the thread."""
        enter_background_thread(self._device)
        work()

    def _record_graphs(self, component: CompiledModule, signature: CallSignature, counts: RowCounts) -> None:
        """Record the component's calls for all its numbers of rows, and give it the graphs. Runs on the thread."""
        assert self._graphs is not None
        generation, backend = component.generation, component.backends.get(signature)
        try:
            if backend is None:
                module = GraphedModule(component.module, signature.structure, self._graphs)
                backend = Backend(module, recorder=module, is_provisional=True)
            self._record_all(component, signature, backend, counts)
        except Exception as error:  # whatever it is, the stream keeps running without
            what = f"no CUDA graphs of the {component.name}"
            if self._report_refusal(component, signature, what, error):
                component.unrecordable.add(signature)
        if backend is not None and len(unrecorded_counts(backend, counts)) < len(set(counts.present)):
            component.install(signature, backend, generation)

    def _record_all(
        self, component: CompiledModule, signature: CallSignature, backend: Backend, counts: RowCounts
    ) -> None:
        """Record and verify all numbers of rows, the largest first: the others fit into its memory."""
        recorder = backend.recorder
        assert recorder is not None
        for rows in unrecorded_counts(backend, counts):
            tensors = example_inputs(signature, rows, self._device)
            # With another mask than it is verified with: a graph may contain lengths that the host read from it.
            tensors = [tensor if tensor.is_floating_point() else torch.ones_like(tensor) for tensor in tensors]
            replay = recorder.record(tensors)
            verify(component, signature, Backend(replay), self._device, rows)
            recorder.publish(replay)

    def _install_backend(self, component: CompiledModule, signature: CallSignature, counts: RowCounts) -> None:
        """Give the component a verified backend for the signature, or mark that as rejected. Runs on the thread."""
        generation = component.generation
        types = [parameter.dtype for parameter in component.module.parameters()]
        try:
            backend = self._load_or_build(component, signature, counts)
            verify(component, signature, backend, self._device)
            if backend.recorder is not None:
                self._record_all(component, signature, backend, counts)
            if types != [parameter.dtype for parameter in component.module.parameters()]:
                raise WeightsChanged
            component.install(signature, backend, generation)
        except Exception as error:  # whatever it is, the stream keeps running uncompiled
            what = f"the {component.name} runs uncompiled"
            if self._report_refusal(component, signature, what, error):
                component.rejected.add(signature)

    def _report_refusal(self, component: CompiledModule, signature: CallSignature, what: str, error: Exception) -> bool:
        """Note why a component stays as it is; return whether it stays so for good.

        Where the weights changed meanwhile, or the memory is short, it is tried again later. Sets ``restart_reason``
        after a capture that the process does not survive.
        """
        key, is_failed_capture = (id(component), signature), isinstance(error, CaptureFailed)
        was_deferred, is_memory_short = key in self._retry_at, is_out_of_memory(error) and not is_failed_capture
        if isinstance(error, WeightsChanged) or is_memory_short:
            wait = MEMORY_RETRY_SECONDS if is_memory_short else CHANGED_RETRY_SECONDS
            self._retry_at[key] = time.perf_counter() + wait
        if self.enabled and not isinstance(error, WeightsChanged) and not (was_deferred and is_memory_short):
            self.notes.append(f"{what}: {first_line(error)}")
        if is_failed_capture and self._graphs is not None and not self._graphs.survives_failure:
            self.restart_reason = f"{what}, and torch {torch.__version__} has to begin again after that"
            self.enabled = False
        return not isinstance(error, WeightsChanged) and not is_memory_short

    def _load_or_build(self, component: CompiledModule, signature: CallSignature, counts: RowCounts) -> Backend:
        """Return a backend from the cache, building it first if it is not there. Raises RuntimeError."""
        from engine.compile.builder import make_recipe

        dtype = next(component.module.parameters()).dtype
        recipe = make_recipe(component.name, component.module, signature, dtype, self._device, self._threads)
        is_tensorrt, max_rows = self._kind == "tensorrt", tensorrt.max_rows(counts)
        shared: dict[str, Any] = {}  # what TensorRT builds of several sizes have in common
        if is_tensorrt:
            recipe["rows"] = max_rows
            shared = {"tensors": tensorrt.widen_sizes(recipe["tensors"]), "engine": tensorrt.version()}
        key = json.dumps([recipe | shared, FORMAT, *describe_environment(self._device)], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        artifact = self._load_cached(path, component)
        if artifact is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._build_once(component, recipe, path)
            artifact = CompiledArtifact(path, component, self._graphs)
        recorder = artifact if artifact.is_recordable else None
        return Backend(artifact, max_rows if is_tensorrt else MAX_ROWS, recorder=recorder)

    def _build_once(self, component: CompiledModule, recipe: dict[str, Any], path: Path) -> None:
        """Build the recipe, unless that failed before on this machine as it is. Raises RuntimeError.

        Failures on a GPU alone are remembered: there a build takes minutes.
        """
        if self._device.type == "cpu":
            self._build(recipe, path)
            return
        key = hashlib.sha256(json.dumps([path.stem, *describe_gpu_software(self._device)]).encode()).hexdigest()[:24]
        if reason := self._refusals.reason(key):
            raise RuntimeError(f"{reason} (an earlier start; delete {key}.refused in {self._folder} to try again)")
        check_build_memory(component.module, self._device)
        try:
            self._build(recipe, path)
        except RuntimeError as error:
            if self.enabled and not is_out_of_memory(error):
                self._refusals.remember(key, first_line(error))
            raise

    def _load_cached(self, path: Path, component: CompiledModule) -> CompiledArtifact | None:
        """Load a build from the cache. Delete it and return None if it is damaged."""
        if not path.exists():
            return None
        try:
            return CompiledArtifact(path, component, self._graphs)
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
            self._builder = start_builder(self._device)
        return self._builder

    def _build(self, recipe: dict[str, Any], path: Path) -> None:
        """Send the recipe to the builder process and wait for its answer. Raises RuntimeError."""
        request = {"recipe": recipe, "path": str(path), "tensorrt": self._kind == "tensorrt"}
        try:
            request_build(self._ensure_builder(), request)
        except BuilderDied:
            self._stop_builder()
            raise

    def _stop_builder(self) -> None:
        """End the builder process, if there is one."""
        builder, self._builder = self._builder, None
        if builder is not None:
            stop_builder(builder)
