"""TensorRT: a part's graph as ONNX, an engine built of it, and the engine run on the weights of the module that it stands for.

The ONNX side is run by onnxruntime in the tests. What calls TensorRT is written against the documentation and type stubs of TensorRT 10.13
and has **never been run**: its libraries could not be had where this was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.compile.dispatch import CallSignature

if TYPE_CHECKING:
    import tensorrt as trt

#: Rows that an engine takes at most, and those that it is tuned for.
MAX_ROWS, USUAL_ROWS = 16, 4


def missing_requirement(device: torch.device) -> str:
    """What is not here and is needed; empty where all is."""
    if device.type != "cuda":
        return "TensorRT needs an NVIDIA GPU; --accelerate compile works without"
    lacking = [
        name for name in ("tensorrt", "onnx", "onnxscript") if (spec := find_spec(name)) is None or spec.origin is None
    ]
    return f"{', '.join(lacking)} is not installed; pip install 'phosphene[tensorrt]'" if lacking else ""


def version() -> str:
    """Of TensorRT."""
    import tensorrt as trt

    return str(trt.__version__)


def span(side: int) -> tuple[int, int]:
    """From which side to which a picture's engine goes: the octave that ``side`` lies in."""
    least = 1 << (side.bit_length() - 1)
    return least, 2 * least


def spans(tensors: Sequence[tuple[str, Sequence[int], bool]]) -> list[tuple[str, list[Any], bool]]:
    """The tensors of a call with the span of each picture's sides in their place: what calls that one engine serves have in common."""
    return [
        (dtype, [sizes[0], *map(span, sizes[1:])] if len(sizes) == 3 else list(sizes), batched)
        for dtype, sizes, batched in tensors
    ]


def write_onnx(program: Any, path: Path) -> None:
    """An exported program as ONNX: its weights under their names in the module, in a file beside it."""
    torch.onnx.export(program, f=str(path), dynamo=True, optimize=False, external_data=True, verbose=False)


def build(program: Any, shape: CallSignature, path: Path) -> None:
    """Builds the engine of an exported program to ``path``, for calls of ``shape`` and its span. Raises RuntimeError."""
    import tensorrt as trt

    graph = path.with_suffix(f".{os.getpid()}.onnx")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    try:
        write_onnx(program, graph)
        if not parser.parse_from_file(str(graph)):
            raise RuntimeError(f"TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    finally:
        for file in graph.parent.glob(f"{graph.name}*"):
            file.unlink()
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        given = network.get_input(index)
        least, usual, most = limits(_sizes(given.shape), shape.tensors[index][1] if index < len(shape.tensors) else ())
        profile.set_shape(given.name, trt.Dims(least), trt.Dims(usual), trt.Dims(most))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT could not build an engine of the graph")
    unfinished = path.with_suffix(f".{os.getpid()}.plan")
    unfinished.write_bytes(bytes(plan))
    unfinished.replace(path)


def limits(dimensions: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Least, usual and most size of each dimension of an input, -1 where it is open: the first is the batch, others a picture's sides."""
    chosen: list[tuple[int, int, int]] = []
    for place, size in enumerate(dimensions):
        if size >= 0:
            chosen.append((size, size, size))
        elif place == 0:
            chosen.append((1, USUAL_ROWS, MAX_ROWS))
        else:
            least, most = span(sizes[place - 1])
            chosen.append((least, sizes[place - 1], most))
    least_, usual, most_ = zip(*chosen, strict=True)
    return list(least_), list(usual), list(most_)


class Engine:
    """A built engine with the module's weights, as they are when it is loaded: a list of tensors in, a list out."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        import tensorrt as trt

        self._types = {
            trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16, trt.DataType.BF16: torch.bfloat16,
            trt.DataType.INT64: torch.int64, trt.DataType.INT32: torch.int32, trt.DataType.BOOL: torch.bool,
        }  # fmt: skip
        logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise RuntimeError("TensorRT cannot read the engine")
        self._refit(trt.Refitter(self._engine, logger), weights)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        given = [self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self._inputs = [name for name, is_input in zip(names, given, strict=True) if is_input]
        self._outputs = [name for name, is_input in zip(names, given, strict=True) if not is_input]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        context, stream = self._context, torch.cuda.current_stream()
        plain = [tensor.contiguous() for tensor in tensors]
        for name, tensor in zip(self._inputs, plain, strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        made = []
        for name in self._outputs:
            dtype = self._types[self._engine.get_tensor_dtype(name)]
            made.append(torch.empty(_sizes(context.get_tensor_shape(name)), dtype=dtype, device=tensors[0].device))
            context.set_tensor_address(name, made[-1].data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("the TensorRT engine failed")
        return made

    def _refit(self, refitter: trt.Refitter, weights: Mapping[str, Tensor]) -> None:
        """Gives the engine its weights; those that it made itself of constants stay."""
        import tensorrt as trt

        types = {dtype: name for name, dtype in self._types.items()}
        held = []
        for name in refitter.get_all_weights():
            if name in weights:
                held.append(weights[name].detach().contiguous())
                told = trt.Weights(types[held[-1].dtype], held[-1].data_ptr(), held[-1].numel())
                where = trt.TensorLocation.DEVICE if held[-1].is_cuda else trt.TensorLocation.HOST
                if not refitter.set_named_weights(name, told, where):
                    raise RuntimeError(f"TensorRT does not take the weights {name}")
        if not refitter.refit_cuda_engine():
            raise RuntimeError(f"TensorRT lacks the weights {', '.join(refitter.get_missing_weights())}")


def _sizes(dimensions: trt.Dims) -> list[int]:
    return [int(dimensions[place]) for place in range(len(dimensions))]
