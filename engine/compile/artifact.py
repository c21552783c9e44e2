"""What was built of a part, run on the weights of the module that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.compile.cuda_graphs import CudaGraphRunner
from engine.compile.dispatch import CompiledModule, to_compiled_layout, tree_unflatten
from engine.compile.fx_source import FxSource
from engine.compile.packing import Packed
from engine.compile.tensorrt import Engine
from engine.runtime.memo import Memo

#: Files of a build, by their endings: what it is, its own constants, and a package of the compiler's or an engine of TensorRT's.
ENDINGS = (".json", ".safetensors", ".pt2", ".plan")
#: What the compiler calls a constant that has no name of its own.
UNNAMED = "_tensor_constant"
#: Sets of steering tensors whose results are kept: those of two streams that fade, and of a batch that fills.
KEPT = 8


class CompiledArtifact:
    """What ``path``, the .json file of a build, tells of: compiled code, a graph's source, or a TensorRT engine.

    What follows from its steering tensors alone is computed once, for as long as they are the same tensors: they are told by identity, and
    nobody changes them in place. ``computed`` counts how often that was.
    """

    def __init__(self, path: Path, part: CompiledModule) -> None:
        from safetensors.torch import load_file

        told = json.loads(path.read_text(encoding="utf-8"))
        self._form, self._changing, self._part = told["result"], told["changing"], part
        device = next(part.module.parameters()).device
        own = {name: tensor.to(device) for name, tensor in load_file(path.with_suffix(".safetensors")).items()}
        held = own | {
            f"module.{name}": tensor for name, tensor in (*part.module.named_parameters(), *part.module.named_buffers())
        }
        self._run: Callable[[Sequence[Tensor]], list[Tensor]]
        if told["run"] == "engine":
            self._run = Engine(path.with_suffix(".plan"), held)
        elif told["run"] == "source":
            self._run = EagerConvolutions(told["graph"], held, part, told["packings"])
        else:
            package = AotiPackage(path.with_suffix(".pt2"), held, part, told["packings"])
            self._run = CudaGraphRunner(package) if device.type == "cuda" else package
        self._steady = FxSource(told["steady"], held) if told["steady"] else None
        self._given: Memo[list[Tensor]] = Memo(KEPT)
        self.computed = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if self._steady is not None:
            steering = [tensor for i, tensor in enumerate(tensors) if i not in self._changing]
            given = self._given.get(lambda: self._followed(steering), self._part.version, *steering)
            tensors = [*(to_compiled_layout(tensors[i]) for i in self._changing), *given]
        else:
            tensors = [to_compiled_layout(tensor) for tensor in tensors]
        return tree_unflatten(self._form, iter(self._run(tensors)))

    def _followed(self, steering: Sequence[Tensor]) -> list[Tensor]:
        assert self._steady is not None
        self.computed += 1
        return self._steady(*steering)


class AotiPackage:
    """A graph as inductor compiled it, on weights that are others' too: what changes them changes it."""

    def __init__(
        self, path: Path, weights: Mapping[str, Tensor], part: CompiledModule, packings: Mapping[str, Mapping[str, Any]]
    ) -> None:
        from torch._C._aoti import AOTIModelPackageLoader  # what aoti_load_package uses, without importing the compiler

        self._run = AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        names = self._run.get_constant_fqns()
        self._part, self._version = part, part.version
        # What the compiler found no name for are the packed weights, counted as they are called.
        unnamed = sorted(
            (name for name in names if name not in weights), key=lambda name: int(name.removeprefix(UNNAMED))
        )
        self._packed = Packed(dict(zip(unnamed, packings.values(), strict=True)), weights)
        self._held = {name: weights[name] for name in names if name in weights} | self._packed.held
        self._run.load_constants(self._held, False, True, True)  # not the inactive ones, all of them, kept alive here

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self._version != self._part.version:
            self._version, renewed = self._part.version, self._packed.renewed()
            self._held |= renewed
            self._run.load_constants(renewed, False, False, True)
        return self._run.boxed_run(list(tensors))


class EagerConvolutions:
    """A graph of convolutions as it was packed, run from its source on weights that are others' too."""

    def __init__(
        self,
        source: Any,
        weights: Mapping[str, Tensor],
        part: CompiledModule,
        packings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._part, self._version = part, part.version
        self._packed = Packed(packings, weights)
        self._run = FxSource(source, {**weights, **self._packed.held})

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self._version != self._part.version:
            self._version = self._part.version
            self._run.renew(self._packed.renewed())
        return self._run(*tensors)
