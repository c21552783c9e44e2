"""Compiled artifacts: the files of a build, run on the live weights of the module they replace."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.compile.cuda_graphs import GraphedFunction, GraphRuntime, Recording
from engine.compile.dispatch import CompiledModule, to_compiled_layout, tree_unflatten
from engine.compile.fx_source import FxSource
from engine.compile.packing import PackedWeights
from engine.compile.tensorrt import TensorRTEngine
from engine.runtime.memo import Memo

#: Files of a build, by suffix: its metadata, its constants, and an AOTInductor package or a TensorRT engine.
BUILD_SUFFIXES = (".json", ".safetensors", ".pt2", ".plan")
#: Prefix of AOTInductor's names for constants that have no name in the graph.
UNNAMED_CONSTANT_PREFIX = "_tensor_constant"
#: Sets of static inputs whose results are cached: enough for two crossfading streams and for a batch that fills.
MAX_STATIC_RESULTS = 8


class CompiledArtifact:
    """A build, by its metadata file ``path``: an AOTInductor package, a graph's source, or a TensorRT engine.

    The static part of the graph runs once for each set of static inputs, identified by object: they are never changed
    in place. ``static_runs`` counts its runs. With ``graphs`` a package's calls can be recorded.
    """

    def __init__(self, path: Path, component: CompiledModule, graphs: GraphRuntime | None = None) -> None:
        from safetensors.torch import load_file

        metadata = json.loads(path.read_text(encoding="utf-8"))
        self._outputs, self._dynamic, self._component = metadata["outputs"], metadata["dynamic"], component
        module = component.module
        device = next(module.parameters()).device
        constants = {name: tensor.to(device) for name, tensor in load_file(path.with_suffix(".safetensors")).items()}
        weights = {f"module.{name}": tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        tensors = constants | weights
        self._run: Callable[[Sequence[Tensor]], list[Tensor]]
        if metadata["backend"] == "tensorrt":
            self._run = TensorRTEngine(path.with_suffix(".plan"), tensors, component)
        elif metadata["backend"] == "source":
            self._run = EagerConvolutions(metadata["graph"], tensors, component, metadata["packings"])
        else:
            package = AotiPackage(path.with_suffix(".pt2"), tensors, component, metadata["packings"])
            self._run = package if graphs is None else GraphedFunction(package, graphs, is_compiled=True)
        self._static = FxSource(metadata["static"], tensors) if metadata["static"] else None
        self._static_results: Memo[list[Tensor]] = Memo(MAX_STATIC_RESULTS)
        self.static_runs = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        return tree_unflatten(self._outputs, iter(self._run(self._prepare(tensors))))

    @property
    def is_recordable(self) -> bool:
        """Whether its calls can be recorded as CUDA graphs."""
        return isinstance(self._run, GraphedFunction)

    def is_recorded(self, rows: int) -> bool:
        """Return whether calls of so many rows are replayed."""
        return self._graphed.is_recorded(rows)

    def record(self, tensors: Sequence[Tensor]) -> RecordedCall:
        """Record a call. Raises what ``GraphedFunction.record`` does."""
        with torch.inference_mode():
            return RecordedCall(self, self._graphed.record(self._prepare(tensors)))

    def publish(self, replay: Any) -> None:
        """Let a recorded call serve all calls of as many rows."""
        self._graphed.publish(replay.recording)

    def replay(self, recording: Recording, tensors: Sequence[Tensor]) -> Any:
        """Run a recording and return what the module would."""
        return tree_unflatten(self._outputs, iter(self._graphed.replay(recording, self._prepare(tensors))))

    @property
    def _graphed(self) -> GraphedFunction:
        assert isinstance(self._run, GraphedFunction)
        return self._run

    def _prepare(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs of the compiled graph: the dynamic ones, and what the static part computed."""
        if self._static is None:
            return [to_compiled_layout(tensor) for tensor in tensors]
        inputs = [tensor for i, tensor in enumerate(tensors) if i not in self._dynamic]
        results = self._static_results.get(lambda: self._run_static(inputs), self._component.version, *inputs)
        return [*(to_compiled_layout(tensors[i]) for i in self._dynamic), *results]

    def _run_static(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        assert self._static is not None
        self.static_runs += 1
        return self._static(*inputs)


class RecordedCall:
    """A recording of an artifact's call as a function of tensors."""

    def __init__(self, artifact: CompiledArtifact, recording: Recording) -> None:
        self._artifact, self.recording = artifact, recording

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        return self._artifact.replay(self.recording, tensors)


class AotiPackage:
    """A graph compiled by AOTInductor, sharing the weights of its component: a weight changed there is changed here.

    On a GPU it runs without the compiler's own synchronisation, which no CUDA graph can contain: then one thread at a
    time may call it.
    """

    def __init__(
        self,
        path: Path,
        weights: Mapping[str, Tensor],
        component: CompiledModule,
        packings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from torch._C._aoti import AOTIModelPackageLoader  # what aoti_load_package uses, without importing the compiler

        device = next(component.module.parameters()).device
        is_cuda = device.type == "cuda"
        index = -1 if not is_cuda else torch.cuda.current_device() if device.index is None else device.index
        self._lock = threading.Lock() if is_cuda else contextlib.nullcontext()
        # (path, name, run_single_threaded, runners, device index)
        self._loader = AOTIModelPackageLoader(str(path), "model", is_cuda, 1, index)
        names = self._loader.get_constant_fqns()
        self._component, self._version = component, component.version
        # Constants without a name are the packed weights, numbered in the order in which the graph uses them.
        unnamed = [name for name in names if name not in weights]
        unnamed.sort(key=lambda name: int(name.removeprefix(UNNAMED_CONSTANT_PREFIX)))
        self._packed = PackedWeights(dict(zip(unnamed, packings.values(), strict=True)), weights)
        self._constants = {name: weights[name] for name in names if name in weights} | self._packed.tensors
        # (use_inactive, check_full_update, user_managed): the loader only references the tensors, so keep them alive.
        self._loader.load_constants(self._constants, False, True, True)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with self._lock:
            if self._version != self._component.version:
                self._version, repacked = self._component.version, self._packed.repack_changed()
                self._constants |= repacked
                self._loader.load_constants(repacked, False, False, True)
            return self._loader.boxed_run(list(tensors))


class EagerConvolutions:
    """A graph of packed convolutions run from its source, sharing the weights of its component."""

    def __init__(
        self,
        source: Any,
        weights: Mapping[str, Tensor],
        component: CompiledModule,
        packings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._component, self._version = component, component.version
        self._packed = PackedWeights(packings, weights)
        self._source = FxSource(source, {**weights, **self._packed.tensors})

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self._version != self._component.version:
            self._version = self._component.version
            self._source.update(self._packed.repack_changed())
        return self._source(*tensors)
