"""``python -m engine.accelerate.builder``: compiles parts of a model, in a process of its own, so that the stream loses no frame.

Reads a line of JSON for each, the recipe, on standard input, and ends when that is closed. A part is made of its configuration alone: what
is compiled holds no weights, so that all checkpoints of one architecture share it, and a live LoRA changes them under its feet.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.accelerate.part import MOST_ROWS, Form, Shape, examples, put_together, taken_apart
from engine.models.autoencoders import Decoder, Encoder

#: Rows of the call that is traced; the batch stays open. Neither 0 nor 1, which tracing takes for constants.
ROWS = 3
SETTINGS = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,  # short biases would be written into the code else
    "aot_inductor.compile_wrapper_opt_level": "O0",  # it calls kernels and does little itself: quicker to build
}


class Flat(nn.Module):
    """A module as a function of tensors alone."""

    def __init__(self, module: nn.Module, form: Form, tell: Callable[[Form], None]) -> None:
        super().__init__()
        self.module, self._form, self._tell = module, form, tell

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, options = put_together(self._form, iter(tensors))
        outputs: list[Tensor] = []
        self._tell(taken_apart(self.module(*arguments, **options), outputs))
        return tuple(outputs)


def recipe(name: str, module: nn.Module, shape: Shape, dtype: torch.dtype, device: torch.device, threads: int) -> dict[str, Any]:
    """What a builder needs to know of a part, and with how many threads it is to run."""
    whole: Any = module.autoencoder if isinstance(module, Encoder | Decoder) else module
    return {
        "part": name,
        "class": type(whole).__name__,
        "config": json.loads(whole.to_json_string()),
        "form": shape.form,
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
    wrapper = {"encoder": Encoder, "decoder": Decoder}.get(recipe["part"])
    return wrapper(module) if wrapper else module


def exported(recipe: dict[str, Any]) -> tuple[Any, Form]:
    """The part as a graph with an open batch, and the form of what it gives."""
    shape = Shape(recipe["form"], tuple((dtype, tuple(sizes), batched) for dtype, sizes, batched in recipe["tensors"]))
    results: list[Form] = []
    flat = Flat(made(recipe), shape.form, results.append)
    batch = torch.export.Dim("batch", min=1, max=MOST_ROWS)
    with torch.no_grad():
        program = torch.export.export(
            flat,
            tuple(examples(shape, ROWS, recipe["device"])),
            dynamic_shapes={"tensors": tuple({0: batch} if batched else None for *_, batched in shape.tensors)},
        )
    return program, results[-1]


def build(recipe: dict[str, Any], path: Path) -> None:
    """Compiles the recipe's part to ``path``, with the form of its result and its own constants beside it."""
    from safetensors.torch import save_file

    program, result = exported(recipe)
    own = {name: value for name, value in program.constants.items() if name not in program.state_dict and isinstance(value, Tensor)}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in own.items()}, path.with_suffix(".safetensors"))
    unfinished = path.with_suffix(f".{os.getpid()}.pt2")
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(unfinished),
        inductor_configs=SETTINGS,
    )
    path.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    """The process: an answer for each line, empty where all went well."""
    wishes: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            wishes.put(json.loads(line))
        os._exit(0)  # whoever asked is gone, in whatever way, or wants no more

    threading.Thread(target=listen, daemon=True).start()
    while True:
        wish = wishes.get()
        torch.set_num_threads(wish["recipe"]["threads"])  # written into the code
        try:
            build(wish["recipe"], Path(wish["path"]))
            answer = ""
        except Exception as error:
            answer = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        os.write(ANSWERS, answer.encode() + b"\n")


if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)  # compilers print what they like
    main()
