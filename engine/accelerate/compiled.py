"""What was built of a part, run on the weights of the module that it stands for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.accelerate.graphs import Graphed
from engine.accelerate.packing import Packed
from engine.accelerate.part import Part, laid_out, put_together
from engine.accelerate.tensorrt import Engine
from engine.kept import Kept

#: Files of a build beside the ``.pt2`` or ``.plan`` itself, by their endings: its own constants, and what it is.
BESIDE = (".safetensors", ".json")
#: Sets of steering tensors whose results are kept: those of two streams that fade, and of a batch that fills.
KEPT = 8


class Compiled:
    """A compiled part, or a TensorRT engine of it.

    What follows from its steering tensors alone is computed once, for as long as they are the same tensors: they are told by identity, and
    nobody changes them in place. ``computed`` counts how often that was.
    """

    def __init__(self, path: Path, part: Part) -> None:
        from safetensors.torch import load_file

        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self._form, self._changing, self._part = told["result"], told["changing"], part
        device = next(part.module.parameters()).device
        own = {name: tensor.to(device) for name, tensor in load_file(path.with_suffix(".safetensors")).items()}
        held = own | {f"module.{name}": tensor for name, tensor in (*part.module.named_parameters(), *part.module.named_buffers())}
        if path.suffix == ".plan":
            self._run: Callable[[Sequence[Tensor]], list[Tensor]] = Engine(path, held)
        else:
            package = Package(path, held, part, told["packings"])
            self._run = Graphed(package) if device.type == "cuda" else package
        self._steady = steady(told["steady"], part, own) if told["steady"] else None
        self._given: Kept[list[Tensor]] = Kept(KEPT)
        self.computed = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if self._steady is not None:
            steering = [tensor for i, tensor in enumerate(tensors) if i not in self._changing]
            given = self._given.get(lambda: self._followed(steering), self._part.version, *steering)
            tensors = [*(laid_out(tensors[i]) for i in self._changing), *given]
        else:
            tensors = [laid_out(tensor) for tensor in tensors]
        return put_together(self._form, iter(self._run(tensors)))

    def _followed(self, steering: Sequence[Tensor]) -> list[Tensor]:
        assert self._steady is not None
        self.computed += 1
        return self._steady(*steering)


class Package:
    """A graph as inductor compiled it, on weights that are others' too: what changes them changes it."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor], part: Part, packings: Sequence[Mapping[str, Any]] = ()) -> None:
        from torch._C._aoti import AOTIModelPackageLoader  # what aoti_load_package uses, without importing the compiler

        self._run = AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        names = self._run.get_constant_fqns()
        self._part, self._version = part, part.version
        self._packed = Packed(packings, weights, names)
        self._held = {name: weights[name] for name in names if name in weights} | self._packed.held
        self._run.load_constants(self._held, False, True, True)  # not the inactive ones, all of them, kept alive here

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self._version != self._part.version:
            self._version, renewed = self._part.version, self._packed.renewed()
            self._held |= renewed
            self._run.load_constants(renewed, False, False, True)
        return self._run.boxed_run(list(tensors))


def steady(source: str, part: Part, own: Mapping[str, Tensor]) -> Callable[..., list[Tensor]]:
    """A steady part's source, as ``torch.fx`` wrote it, as a function on the part's weights as they are and constants of its ``own``."""
    names: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
    exec(source, names)
    on = SimpleNamespace(module=part.module, **own)
    return lambda *steering: names["forward"](on, *steering)
