"""TensorRT: export a graph as ONNX, build an engine from it, and run that on the weights of the module it replaces.

The tests run the ONNX side with onnxruntime. The calls to TensorRT follow the documentation and type stubs of TensorRT
10.13 and have **never been run**: its libraries were not available where this was written.
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
from engine.shared.files import write_atomically

if TYPE_CHECKING:
    import tensorrt as trt

#: Largest batch of an engine, in rows, and the batch that it is tuned for.
MAX_ROWS, TYPICAL_ROWS = 16, 4


def missing_requirement(device: torch.device) -> str:
    """Return what is missing to use TensorRT and how to get it, empty if nothing is."""
    if device.type != "cuda":
        return "TensorRT needs an NVIDIA GPU; --accelerate compile works without"
    missing = [
        name for name in ("tensorrt", "onnx", "onnxscript") if (spec := find_spec(name)) is None or spec.origin is None
    ]
    return f"{', '.join(missing)} is not installed; pip install 'phosphene[tensorrt]'" if missing else ""


def version() -> str:
    """Return the installed version of TensorRT."""
    import tensorrt as trt

    return str(trt.__version__)


def size_octave(side: int) -> tuple[int, int]:
    """Return (smallest, largest) side of the engine for an image of ``side``: the octave that it lies in."""
    smallest = 1 << (side.bit_length() - 1)
    return smallest, 2 * smallest


def widen_sizes(tensors: Sequence[tuple[str, Sequence[int], bool]]) -> list[tuple[str, list[Any], bool]]:
    """Replace the height and width of each image by their octaves: all calls with the same result share one engine.

    ``tensors`` are (dtype, sizes, is_batched); ``sizes`` leave out the batch.
    """
    return [
        (dtype, [sizes[0], *map(size_octave, sizes[1:])] if len(sizes) == 3 else list(sizes), is_batched)
        for dtype, sizes, is_batched in tensors
    ]


def write_onnx(program: Any, path: Path) -> None:
    """Write an exported program as ONNX: its weights under their names in the module, in a second file next to it."""
    torch.onnx.export(program, f=str(path), dynamo=True, optimize=False, external_data=True, verbose=False)


def build(program: Any, signature: CallSignature, path: Path) -> None:
    """Build the engine of an exported program for ``signature`` and its octave. Raises RuntimeError."""
    import tensorrt as trt

    onnx_path = path.with_suffix(f".{os.getpid()}.onnx")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    try:
        write_onnx(program, onnx_path)
        if not parser.parse_from_file(str(onnx_path)):
            raise RuntimeError(f"TensorRT cannot parse the graph: {parser.get_error(0).desc()}")
    finally:
        for file in onnx_path.parent.glob(f"{onnx_path.name}*"):
            file.unlink()
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = signature.tensors[index].sizes if index < len(signature.tensors) else ()
        smallest, typical, largest = profile_limits(_to_list(tensor.shape), sizes)
        profile.set_shape(tensor.name, trt.Dims(smallest), trt.Dims(typical), trt.Dims(largest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT could not build an engine from the graph")
    write_atomically(path, bytes(plan))


def profile_limits(dimensions: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return (smallest, typical, largest) sizes of an input's dimensions.

    In ``dimensions`` an open one is -1: the first is the batch, others are an image's sides. ``sizes`` leave out the
    batch.
    """
    limits: list[tuple[int, int, int]] = []
    for index, size in enumerate(dimensions):
        if size >= 0:
            limits.append((size, size, size))
        elif index == 0:
            limits.append((1, TYPICAL_ROWS, MAX_ROWS))
        else:
            smallest, largest = size_octave(sizes[index - 1])
            limits.append((smallest, sizes[index - 1], largest))
    all_smallest, all_typical, all_largest = zip(*limits, strict=True)
    return list(all_smallest), list(all_typical), list(all_largest)


class TensorRTEngine:
    """An engine with the module's weights as they are when it is loaded; takes and returns a list of tensors."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        import tensorrt as trt

        self._dtypes = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
            trt.DataType.INT64: torch.int64,
            trt.DataType.INT32: torch.int32,
            trt.DataType.BOOL: torch.bool,
        }
        logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise RuntimeError("TensorRT cannot read the engine")
        self._refit(trt.Refitter(self._engine, logger), weights)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] != trt.TensorIOMode.INPUT]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        context, stream = self._context, torch.cuda.current_stream()
        inputs = [tensor.contiguous() for tensor in tensors]
        for name, tensor in zip(self._inputs, inputs, strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self._outputs:
            dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
            outputs.append(torch.empty(_to_list(context.get_tensor_shape(name)), dtype=dtype, device=tensors[0].device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("the TensorRT engine failed")
        return outputs

    def _refit(self, refitter: trt.Refitter, weights: Mapping[str, Tensor]) -> None:
        """Set the engine's weights from ``weights``; those that it computed itself from constants stay."""
        import tensorrt as trt

        datatypes = {dtype: datatype for datatype, dtype in self._dtypes.items()}
        referenced = []  # until the engine has copied them
        for name in refitter.get_all_weights():
            if name in weights:
                tensor = weights[name].detach().contiguous()
                referenced.append(tensor)
                pointer = trt.Weights(datatypes[tensor.dtype], tensor.data_ptr(), tensor.numel())
                location = trt.TensorLocation.DEVICE if tensor.is_cuda else trt.TensorLocation.HOST
                if not refitter.set_named_weights(name, pointer, location):
                    raise RuntimeError(f"TensorRT rejects the weights {name}")
        if not refitter.refit_cuda_engine():
            raise RuntimeError(f"TensorRT is missing the weights {', '.join(refitter.get_missing_weights())}")


def _to_list(dimensions: trt.Dims) -> list[int]:
    return [int(dimensions[index]) for index in range(len(dimensions))]
