"""``python -m engine.compile.builder``: compile components in a separate process, so that the stream loses no frame.

Reads one JSON request per line on standard input, each with a recipe, and exits when that is closed. A component is
created from its configuration alone and a build holds no weights. So all checkpoints of an architecture share it, and a
live LoRA takes effect in it.
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
from engine.runtime.device import use_device
from engine.shared.errors import first_line
from engine.shared.files import replace_atomically, write_atomically

#: Rows of the traced call; the batch stays open. Not 0 or 1, which tracing treats as constants.
TRACED_ROWS = 3
INDUCTOR_OPTIONS = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,  # else short biases are written into the code
    "aot_inductor.package": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",  # the wrapper only calls kernels: build it quickly
    "aot_inductor.enable_frame_pointer": False,  # for debugging only
    "aot_inductor.enable_line_tables": False,
    "cpp.vec_isa_ok": True,  # trust the processor's feature flags instead of test-compiling
}
#: Further options on a CPU: they skip work that takes long and gains nothing here.
INDUCTOR_CPU_OPTIONS = {
    "aot_inductor.precompile_headers": False,  # precompiling takes longer than it saves
    "cpp.enable_tiling_heuristics": False,
    "pattern_matcher": False,
}


class FlatModule(nn.Module):
    """A module as a function of tensors alone; ``on_output`` receives the structure of each call's output."""

    def __init__(self, module: nn.Module, structure: TreeSpec, on_output: Callable[[TreeSpec], None]) -> None:
        super().__init__()
        self.module, self._structure, self._on_output = module, structure, on_output

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, options = tree_unflatten(self._structure, iter(tensors))
        outputs: list[Tensor] = []
        self._on_output(tree_flatten(self.module(*arguments, **options), outputs))
        return tuple(outputs)


def make_recipe(
    name: str, module: nn.Module, signature: CallSignature, dtype: torch.dtype, device: torch.device, threads: int
) -> dict[str, Any]:
    """Return what the builder needs to create a component and compile it for ``threads`` threads, ready for JSON."""
    wrapped: Any = getattr(module, "wrapped", None)
    configured: Any = module if wrapped is None else wrapped
    return {
        "component": name,
        "class": type(configured).__name__,
        "wrapper": "" if wrapped is None else f"{type(module).__module__}:{type(module).__qualname__}",
        "config": json.loads(configured.to_json_string()),
        "structure": signature.structure,
        "tensors": signature.tensors,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": threads,
    }


def create_module(recipe: dict[str, Any]) -> nn.Module:
    """Create the component of a recipe with uninitialised weights."""
    import diffusers

    config = {key: value for key, value in recipe["config"].items() if not key.startswith("_")}
    with torch.device("meta"):
        module: Any = getattr(diffusers, recipe["class"]).from_config(config)
    module = module.to(getattr(torch, recipe["dtype"])).to_empty(device=recipe["device"]).requires_grad_(False).eval()
    module.to(memory_format=torch.channels_last)
    if not recipe["wrapper"]:
        return module
    package, _, name = recipe["wrapper"].partition(":")
    wrapper: Callable[[nn.Module], nn.Module] = getattr(importlib.import_module(package), name)
    return wrapper(module)


@dataclass(frozen=True)
class ExportedComponent:
    """A component as a graph with an open batch, without its ``static`` part, if it has one.

    ``outputs`` is the structure of the module's output. The ``meta`` of the graph's placeholders describes its inputs.
    ``program`` returns the graph as an ExportedProgram.
    """

    graph: fx.GraphModule
    outputs: TreeSpec
    program: Callable[[], Any]
    static: fx.GraphModule | None = None


def export(recipe: dict[str, Any], any_size: bool = False) -> ExportedComponent:
    """Export the component of a recipe and partition it (see ``partition``).

    Its images may have any size with ``any_size``, else the recipe's alone.
    """
    specs = (TensorSpec(dtype, tuple(sizes), is_batched) for dtype, sizes, is_batched in recipe["tensors"])
    signature = CallSignature(recipe["structure"], tuple(specs))
    outputs: list[TreeSpec] = []
    flat = FlatModule(create_module(recipe), signature.structure, outputs.append)
    tensors = example_inputs(signature, TRACED_ROWS, recipe["device"])
    batched = [spec.is_batched for spec in signature.tensors]
    with torch.no_grad():
        shapes = {"tensors": _dynamic_shapes(tensors, batched, any_size)}
        whole = torch.export.export(flat, tuple(tensors), dynamic_shapes=shapes)
        dynamic, graph = dynamic_inputs(signature.tensors), whole.module(check_guards=False)
        parts = partition(graph, dynamic, batched)
        if parts is None:
            return ExportedComponent(graph, outputs[-1], lambda: whole)
    static_graph, dynamic_graph = parts

    def program() -> Any:
        static_inputs = [tensor for i, tensor in enumerate(tensors) if i not in dynamic]
        passed = placeholders(dynamic_graph)[len(dynamic) :]
        is_batched = [*(batched[i] for i in dynamic), *(not isinstance(n.meta["val"].shape[0], int) for n in passed)]
        with torch.no_grad():
            inputs = (*(tensors[i] for i in dynamic), *static_graph(*static_inputs))
            shapes = _dynamic_shapes(inputs, is_batched, any_size, len(dynamic))
            return torch.export.export(dynamic_graph, inputs, dynamic_shapes=shapes)

    return ExportedComponent(dynamic_graph, outputs[-1], program, static_graph)


def _dynamic_shapes(
    tensors: Sequence[Tensor], batched: Sequence[bool], any_size: bool, images: int = MAX_ROWS
) -> tuple[dict[int, Any], ...]:
    """Return each tensor's open dimensions: the batch, and with ``any_size`` the sides of the first ``images``."""
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    shapes = []
    for i, (tensor, is_batched) in enumerate(zip(tensors, batched, strict=True)):
        has_open_sides = any_size and tensor.dim() == 4 and i < images
        sides = dict.fromkeys((2, 3), torch.export.Dim.AUTO) if has_open_sides else {}
        shapes.append(({0: batch} if is_batched else {}) | sides)
    return tuple(shapes)


def build(recipe: dict[str, Any], path: Path, use_tensorrt: bool = False) -> None:
    """Build the component of a recipe. ``path`` is the .json file with the build's metadata, written last.

    Next to it lie the build's constants, and an AOTInductor package (.pt2) or a TensorRT engine (.plan). A graph that
    is mostly convolutions is stored as source in the metadata.
    """
    from safetensors.torch import save_file

    use_device(torch.device(recipe["device"]))
    exported = export(recipe, any_size=use_tensorrt)
    graph, static = exported.graph, exported.static
    tensors = constants(graph) | (constants(static) if static else {})
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(tensors, path.with_suffix(".safetensors"))
    dynamic = dynamic_inputs(recipe["tensors"])
    metadata: dict[str, Any] = {
        "outputs": exported.outputs,
        "dynamic": dynamic,
        "static": static and write_source(static),
        "packings": {},
    }
    if use_tensorrt:
        inputs = [spec for i, spec in enumerate(recipe["tensors"]) if static is None or i in dynamic]
        signature = CallSignature((), tuple(TensorSpec(*spec) for spec in inputs))
        rows = recipe.get("rows", tensorrt.MAX_ROWS)
        tensorrt.build(exported.program(), signature, path.with_suffix(".plan"), rows)
        metadata["backend"] = "tensorrt"
    else:
        if recipe["device"] == "cpu":
            rewrite(graph)
            metadata["packings"] = pack(graph)
        if metadata["packings"] and is_mostly_convolutions(graph):
            metadata |= {"backend": "source", "graph": write_source(graph)}
        else:
            _compile(graph, recipe["device"], path.with_suffix(".pt2"))
            metadata["backend"] = "package"
    write_atomically(path, json.dumps(metadata))


def _compile(graph: fx.GraphModule, device: str, path: Path) -> None:
    """Compile the graph to an AOTInductor package."""
    from torch._inductor.package.package import package_aoti

    options = INDUCTOR_OPTIONS | (INDUCTOR_CPU_OPTIONS if device == "cpu" else {})
    inputs = tuple(node.meta["val"] for node in placeholders(graph))
    files: Any = torch._inductor.aot_compile(graph, inputs, options=_drop_unsupported(options))
    with replace_atomically(path) as temporary:
        package_aoti(str(temporary), files)


def _drop_unsupported(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that this release of the compiler has; those that older releases lack only save time."""
    config = torch._inductor.config.get_config_copy()
    return {name: value for name, value in options.items() if name in config}


def placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the graph's inputs."""
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _import_compiler() -> None:
    """Import what every build needs, so that a process started early is ready for the first request."""
    for name in (
        "diffusers",
        "safetensors.torch",
        "torch.export",
        "torch._inductor.compile_fx",
        "torch._inductor.package.package",
    ):
        importlib.import_module(name)
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with torch._inductor.config.patch(_drop_unsupported(INDUCTOR_OPTIONS)):
        pick_vec_isa()  # cached from here on


def main(answers: int) -> None:
    """Build each request; answer with one line on file descriptor ``answers``: the error, empty on success."""
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read_requests() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # the engine closed its end or died

    threading.Thread(target=read_requests, daemon=True).start()
    gc.disable()  # graphs are millions of small objects that live as long as this process
    with contextlib.suppress(Exception):  # a build raises the same error again, and that one is reported
        _import_compiler()
    while True:
        request = requests.get()
        torch.set_num_threads(request["recipe"]["threads"])  # the generated code contains the number
        try:
            build(request["recipe"], Path(request["path"]), request["tensorrt"])
            answer = ""
        except Exception as error:
            answer = first_line(error)
        os.write(answers, answer.encode() + b"\n")


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # compilers print to standard output
    main(answers)
