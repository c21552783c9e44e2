"""Compiled artifacts: the files of a build, run on the live weights of the module they replace."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.compile.cuda_graphs import CudaGraphRunner
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
    in place. ``static_runs`` counts its runs.
    """

    def __init__(self, path: Path, component: CompiledModule) -> None:
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
            self._run = TensorRTEngine(path.with_suffix(".plan"), tensors)
        elif metadata["backend"] == "source":
            self._run = EagerConvolutions(metadata["graph"], tensors, component, metadata["packings"])
        else:
            package = AotiPackage(path.with_suffix(".pt2"), tensors, component, metadata["packings"])
            self._run = CudaGraphRunner(package) if device.type == "cuda" else package
        self._static = FxSource(metadata["static"], tensors) if metadata["static"] else None
        self._static_results: Memo[list[Tensor]] = Memo(MAX_STATIC_RESULTS)
        self.static_runs = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if self._static is not None:
            inputs = [tensor for i, tensor in enumerate(tensors) if i not in self._dynamic]
            results = self._static_results.get(lambda: self._run_static(inputs), self._component.version, *inputs)
            tensors = [*(to_compiled_layout(tensors[i]) for i in self._dynamic), *results]
        else:
            tensors = [to_compiled_layout(tensor) for tensor in tensors]
        return tree_unflatten(self._outputs, iter(self._run(tensors)))

    def _run_static(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        assert self._static is not None
        self.static_runs += 1
        return self._static(*inputs)


class AotiPackage:
    """A graph compiled by AOTInductor, sharing the weights of its component: a weight changed there is changed here."""

    def __init__(
        self,
        path: Path,
        weights: Mapping[str, Tensor],
        component: CompiledModule,
        packings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from torch._C._aoti import AOTIModelPackageLoader  # what aoti_load_package uses, without importing the compiler

        self._loader = AOTIModelPackageLoader(str(path), "model", False, 1, -1)
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
