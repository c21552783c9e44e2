"""TensorRT: export a graph as ONNX, build an engine from it, and run that on the weights of the module it replaces.

The tests run the ONNX side with onnxruntime, and the calls to TensorRT against a stand-in with its names. These follow
the documentation of TensorRT 10.13 and 11.4 and have **never been run**: its libraries were not available where this
was written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.compile.dispatch import BackendUnusable, CallSignature, CompiledModule, RowCounts
from engine.shared.files import write_atomically

if TYPE_CHECKING:
    import tensorrt as trt

#: Largest batch that an engine is built for, in rows, and the batch that it is tuned for.
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


def max_rows(counts: RowCounts) -> int:
    """Return the largest batch of an engine for these calls: a power of two, so that few settings need another one.

    An engine's memory and its build time grow with it.
    """
    rows = 2
    while rows < min(counts.largest, MAX_ROWS):
        rows *= 2
    return rows


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


def build(program: Any, signature: CallSignature, path: Path, rows: int = MAX_ROWS) -> None:
    """Build the engine of an exported program for ``signature``, its octave and up to ``rows``. Raises RuntimeError."""
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
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)  # since 10.10
    if resize is not None:  # a context's memory then follows the sizes of a call, not the largest of the profile
        config.set_preview_feature(resize, True)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = signature.tensors[index].sizes if index < len(signature.tensors) else ()
        smallest, typical, largest = profile_limits(_to_list(tensor.shape), sizes, rows)
        profile.set_shape(tensor.name, trt.Dims(smallest), trt.Dims(typical), trt.Dims(largest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT could not build an engine from the graph")
    write_atomically(path, bytes(plan))


def profile_limits(
    dimensions: Sequence[int], sizes: Sequence[int], rows: int = MAX_ROWS
) -> tuple[list[int], list[int], list[int]]:
    """Return (smallest, typical, largest) sizes of an input's dimensions.

    In ``dimensions`` an open one is -1: the first is the batch, others are an image's sides. ``sizes`` leave out the
    batch.
    """
    limits: list[tuple[int, int, int]] = []
    for index, size in enumerate(dimensions):
        if size >= 0:
            limits.append((size, size, size))
        elif index == 0:
            limits.append((1, min(TYPICAL_ROWS, rows), rows))
        else:
            smallest, largest = size_octave(sizes[index - 1])
            limits.append((smallest, sizes[index - 1], largest))
    all_smallest, all_typical, all_largest = zip(*limits, strict=True)
    return list(all_smallest), list(all_typical), list(all_largest)


class TensorRTEngine:
    """An engine that takes and returns a list of tensors and follows the weights of its ``component``.

    ``weights`` are the module's tensors and the graph's constants, by their names in it. A weight that changed in place
    is set in the engine before the next call. The memory of a call is torch's, as large as its sizes need.
    """

    def __init__(self, path: Path, weights: Mapping[str, Tensor], component: CompiledModule) -> None:
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
        self._component, self._version = component, component.version
        self._refitter = trt.Refitter(self._engine, logger)
        self._weights = {name: weights[name] for name in self._refitter.get_all_weights() if name in weights}
        self._versions = {name: _version_of(tensor) for name, tensor in self._weights.items()}
        self._refit(self._weights, self._refitter.refit_cuda_engine)
        self._context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._sizes: tuple[tuple[int, ...], ...] = ()
        self._memory_bytes = 0
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] != trt.TensorIOMode.INPUT]
        self._lock = threading.Lock()

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the engine on the current stream. Raises BackendUnusable where TensorRT refuses."""
        device = tensors[0].device
        stream = torch.cuda.current_stream(device).cuda_stream
        inputs = [tensor.contiguous() for tensor in tensors]
        with self._lock:
            self._follow_weights(stream)
            context, memory = self._context, self._bind(inputs, device)
            context.set_device_memory(memory.data_ptr(), self._memory_bytes)
            outputs = []
            for name in self._outputs:
                dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
                outputs.append(torch.empty(_to_list(context.get_tensor_shape(name)), dtype=dtype, device=device))
                context.set_tensor_address(name, outputs[-1].data_ptr())
            if not context.execute_async_v3(stream):
                raise BackendUnusable("the TensorRT engine failed")
        return outputs

    def _bind(self, inputs: Sequence[Tensor], device: torch.device) -> Tensor:
        """Set the inputs and return the memory for their sizes.

        It may be freed as soon as the call is queued: torch reuses it for later work on the same stream alone.
        """
        for name, tensor in zip(self._inputs, inputs, strict=True):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise BackendUnusable(f"TensorRT rejects {name} of size {tuple(tensor.shape)}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        sizes = tuple(tuple(tensor.shape) for tensor in inputs)
        if sizes != self._sizes:
            self._memory_bytes = int(self._context.update_device_memory_size_for_shapes())
            self._sizes = sizes
        return torch.empty(max(1, self._memory_bytes), dtype=torch.uint8, device=device)

    def _follow_weights(self, stream: int) -> None:
        """Set the weights that were changed in place since the last call, in the order of the stream's work."""
        if self._version == self._component.version:
            return
        self._version = self._component.version
        versions = {name: _version_of(tensor) for name, tensor in self._weights.items()}
        changed = [name for name, version in versions.items() if version < 0 or version != self._versions[name]]
        self._versions = versions
        if changed:
            try:
                self._refit(changed, lambda: self._refitter.refit_cuda_engine_async(stream))
            except RuntimeError as error:
                raise BackendUnusable(str(error)) from error

    def _refit(self, names: Iterable[str], refit: Callable[[], bool]) -> None:
        """Set the weights ``names`` in the engine, and those that it has fused with them. Raises RuntimeError."""
        tensors = [self._set_weight(name) for name in names]
        tensors += [self._set_weight(name) for name in self._refitter.get_missing_weights() if name in self._weights]
        if not refit():
            raise RuntimeError(f"TensorRT is missing the weights {', '.join(self._refitter.get_missing_weights())}")
        del tensors  # the engine has copied them, or will before the stream's next work

    def _set_weight(self, name: str) -> Tensor:
        """Set one weight and return the tensor that must live until the engine is refitted."""
        import tensorrt as trt

        datatypes = {dtype: datatype for datatype, dtype in self._dtypes.items()}
        tensor = self._weights[name].detach().contiguous()
        pointer = trt.Weights(datatypes[tensor.dtype], tensor.data_ptr(), tensor.numel())
        location = trt.TensorLocation.DEVICE if tensor.is_cuda else trt.TensorLocation.HOST
        if not self._refitter.set_named_weights(name, pointer, location):
            raise RuntimeError(f"TensorRT rejects the weights {name}")
        return tensor


def _version_of(weight: Tensor) -> int:
    """Return the number of changes in place of a weight, -1 where torch does not count them."""
    return -1 if weight.is_inference() else weight._version


def _to_list(dimensions: trt.Dims) -> list[int]:
    return [int(dimensions[index]) for index in range(len(dimensions))]
