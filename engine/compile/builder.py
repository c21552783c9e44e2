"""``python -m engine.compile.builder``: builds fast runs of a model's parts, in a process of its own, so that the stream loses no frame.

Reads a line of JSON for each, the recipe, on standard input, and ends when that is closed. A part is made of its configuration alone: what
is compiled holds no weights, so that all checkpoints of one architecture share it, and a live LoRA changes them under its feet.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.compile import tensorrt
from engine.compile.dispatch import (
    MAX_ROWS,
    CallSignature,
    TensorSpec,
    TreeSpec,
    example_inputs,
    tree_flatten,
    tree_unflatten,
)
from engine.compile.fx_passes import rewrite
from engine.compile.fx_source import constants, is_mostly_convolutions, write_source
from engine.compile.packing import pack
from engine.compile.partition import dynamic_inputs, partition

#: Rows of the call that is traced; the batch stays open. Neither 0 nor 1, which tracing takes for constants.
ROWS = 3
SETTINGS = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,  # short biases would be written into the code else
    "aot_inductor.package": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",  # it calls kernels and does little itself: quicker to build
    "aot_inductor.enable_frame_pointer": False,  # nor is it to be debugged
    "aot_inductor.enable_line_tables": False,
    "cpp.vec_isa_ok": True,  # what the processor says it can do it can, without trying it out
}
#: On a processor: what takes long and gains nothing here.
ON_CPU = {
    "aot_inductor.precompile_headers": False,  # making them takes longer than they save
    "cpp.enable_tiling_heuristics": False,
    "pattern_matcher": False,
}


class Flat(nn.Module):
    """A module as a function of tensors alone."""

    def __init__(self, module: nn.Module, form: TreeSpec, tell: Callable[[TreeSpec], None]) -> None:
        super().__init__()
        self.module, self._form, self._tell = module, form, tell

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, options = tree_unflatten(self._form, iter(tensors))
        outputs: list[Tensor] = []
        self._tell(tree_flatten(self.module(*arguments, **options), outputs))
        return tuple(outputs)


def recipe(
    name: str, module: nn.Module, shape: CallSignature, dtype: torch.dtype, device: torch.device, threads: int
) -> dict[str, Any]:
    """What a builder needs to know of a part, and with how many threads it is to run."""
    wrapped: Any = getattr(module, "wrapped", None)
    whole: Any = module if wrapped is None else wrapped
    return {
        "part": name,
        "class": type(whole).__name__,
        "wrapper": "" if wrapped is None else f"{type(module).__module__}:{type(module).__qualname__}",
        "config": json.loads(whole.to_json_string()),
        "form": shape.structure,
        "tensors": shape.tensors,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": threads,
    }


def made(recipe: dict[str, Any]) -> nn.Module:
    """The part of a recipe, its weights of any value."""
    import diffusers

    settings = {key: value for key, value in recipe["config"].items() if not key.startswith("_")}
    with torch.device("meta"):
        module: Any = getattr(diffusers, recipe["class"]).from_config(settings)
    module = module.to(getattr(torch, recipe["dtype"])).to_empty(device=recipe["device"]).requires_grad_(False).eval()
    module.to(memory_format=torch.channels_last)
    if not recipe["wrapper"]:
        return module
    place, _, name = recipe["wrapper"].partition(":")
    wrapper: Callable[[nn.Module], nn.Module] = getattr(importlib.import_module(place), name)
    return wrapper(module)


@dataclass(frozen=True)
class Exported:
    """A part as a graph with an open batch: the ``form`` of what it gives, and the ``steady`` part that was cut out of it, if any.

    The placeholders of ``graph`` tell in their ``meta`` what it takes; ``program`` gives it as torch.export has it.
    """

    graph: fx.GraphModule
    form: TreeSpec
    program: Callable[[], Any]
    steady: fx.GraphModule | None = None


def exported(recipe: dict[str, Any], any_size: bool = False) -> Exported:
    """The part of a recipe, exported (see ``split`` for what is cut out); its pictures of any size that suits it, or of the recipe's."""
    shape = CallSignature(
        recipe["form"], tuple(TensorSpec(dtype, tuple(sizes), batched) for dtype, sizes, batched in recipe["tensors"])
    )
    results: list[TreeSpec] = []
    flat = Flat(made(recipe), shape.structure, results.append)
    tensors, batched = example_inputs(shape, ROWS, recipe["device"]), [batched for *_, batched in shape.tensors]
    with torch.no_grad():
        whole = torch.export.export(flat, tuple(tensors), dynamic_shapes={"tensors": _open(tensors, batched, any_size)})
        changing, graph = dynamic_inputs(shape.tensors), whole.module(check_guards=False)
        parts = partition(graph, changing, batched)
        if parts is None:
            return Exported(graph, results[-1], lambda: whole)
    steady, rest = parts

    def program() -> Any:
        others = [i for i in range(len(tensors)) if i not in changing]
        places = placeholders(rest)[len(changing) :]
        sides = [*(batched[i] for i in changing), *(not isinstance(node.meta["val"].shape[0], int) for node in places)]
        with torch.no_grad():
            inputs = (*(tensors[i] for i in changing), *steady(*(tensors[i] for i in others)))
            return torch.export.export(rest, inputs, dynamic_shapes=_open(inputs, sides, any_size, len(changing)))

    return Exported(rest, results[-1], program, steady)


def _open(
    tensors: Sequence[Tensor], batched: Sequence[bool], any_size: bool, pictures: int = MAX_ROWS
) -> tuple[dict[int, Any], ...]:
    """The open dimensions: the batch of batched tensors, and with ``any_size`` the sides of pictures among the first tensors."""
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    dimensions = []
    for place, (tensor, rows) in enumerate(zip(tensors, batched, strict=True)):
        sides = (
            dict.fromkeys((2, 3), torch.export.Dim.AUTO) if any_size and tensor.dim() == 4 and place < pictures else {}
        )
        dimensions.append(({0: batch} if rows else {}) | sides)
    return tuple(dimensions)


def build(recipe: dict[str, Any], path: Path, engine: bool = False) -> None:
    """Builds a fast run of the recipe's part. ``path``, a .json file that is there when all is, says what it is and how it is called.

    Beside it lie its own constants, and a .pt2 package or, as ``engine``, a TensorRT .plan; a graph of convolutions is kept as its source.
    """
    from safetensors.torch import save_file

    made = exported(recipe, any_size=engine)
    own = constants(made.graph) | (constants(made.steady) if made.steady else {})
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in own.items()},
        path.with_suffix(".safetensors"),
    )
    changing = dynamic_inputs(recipe["tensors"])
    told: dict[str, Any] = {
        "result": made.form,
        "changing": changing,
        "steady": made.steady and write_source(made.steady),
        "packings": {},
    }
    if engine:
        pictures = CallSignature(
            (), tuple(tensor for i, tensor in enumerate(recipe["tensors"]) if made.steady is None or i in changing)
        )
        tensorrt.build(made.program(), pictures, path.with_suffix(".plan"))
        told["run"] = "engine"
    else:
        if recipe["device"] == "cpu":
            rewrite(made.graph)
            told["packings"] = pack(made.graph)
        if told["packings"] and is_mostly_convolutions(made.graph):
            told |= {"run": "source", "graph": write_source(made.graph)}
        else:
            _compile(made.graph, recipe["device"], path.with_suffix(".pt2"))
            told["run"] = "package"
    unfinished = path.with_suffix(f".{os.getpid()}.json")
    unfinished.write_text(json.dumps(told), encoding="utf-8")
    unfinished.replace(path)


def _compile(graph: fx.GraphModule, device: str, path: Path) -> None:
    from torch._inductor.package.package import package_aoti

    unfinished = path.with_suffix(f".{os.getpid()}.pt2")
    settings = SETTINGS | (ON_CPU if device == "cpu" else {})
    inputs = tuple(node.meta["val"] for node in placeholders(graph))
    compiled: Any = torch._inductor.aot_compile(graph, inputs, options=_known(settings))
    package_aoti(str(unfinished), compiled)
    unfinished.replace(path)


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that this release of the compiler has; those that older ones lack only save time."""
    has = torch._inductor.config.get_config_copy()
    return {name: value for name, value in settings.items() if name in has}


def placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    """The graph's inputs."""
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _import() -> None:
    """What every build needs: done before the first is asked for, where this process was started in time."""
    for name in (
        "diffusers",
        "safetensors.torch",
        "torch.export",
        "torch._inductor.compile_fx",
        "torch._inductor.package.package",
    ):
        importlib.import_module(name)
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with torch._inductor.config.patch(_known(SETTINGS)):
        pick_vec_isa()  # it tries out what the compiler here can do


def main() -> None:
    """The process: an answer for each line, empty where all went well."""
    wishes: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            wishes.put(json.loads(line))
        os._exit(0)  # whoever asked is gone, in whatever way, or wants no more

    threading.Thread(target=listen, daemon=True).start()
    gc.disable()  # graphs are millions of small objects that live as long as this process
    with contextlib.suppress(Exception):  # what fails fails again at the build, and is told there
        _import()
    while True:
        wish = wishes.get()
        torch.set_num_threads(wish["recipe"]["threads"])  # written into the code
        try:
            build(wish["recipe"], Path(wish["path"]), wish["engine"])
            answer = ""
        except Exception as error:
            answer = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        os.write(ANSWERS, answer.encode() + b"\n")


if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)  # compilers print what they like
    main()
