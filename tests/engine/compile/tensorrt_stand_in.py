"""A stand-in for ``tensorrt`` on the CPU: the names, argument orders and return values of its documentation (10, 11).

Its engine computes y = x · scale + shift, from weights in memory of its own. It has fused the two weights: a refit of
one asks for the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np

ROWS_LIMIT = 8


class DataType(Enum):
    FLOAT, HALF, BF16, INT64, INT32, BOOL = range(6)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class BuilderFlag(Enum):
    REFIT = 0


class PreviewFeature(Enum):
    RUNTIME_ACTIVATION_RESIZE_10_10 = 0


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class Logger:
    WARNING = 2

    def __init__(self, _severity: int) -> None: ...


class Dims:
    """Sizes of a tensor: a sequence without slices."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]


def read(pointer: int, count: int) -> np.ndarray:
    """Return the float32 values at an address."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer))


class Weights:
    def __init__(self, dtype: DataType, pointer: int, count: int) -> None:
        assert dtype is DataType.FLOAT
        self.values = read(pointer, count)


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.contexts: list[IExecutionContext] = []
        self.log: list[tuple[Any, ...]] = []
        self.rejected: set[str] = set()

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, _name: str) -> DataType:
        return DataType.FLOAT

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext:
        self.contexts.append(IExecutionContext(self, strategy))
        return self.contexts[-1]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine, self.strategy = engine, strategy
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.sized_for: tuple[int, ...] = ()
        self.memory = (0, 0)

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self.shape = shape
        return shape[0] <= ROWS_LIMIT

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, _name: str) -> Dims:
        return Dims(self.shape)

    def update_device_memory_size_for_shapes(self) -> int:
        self.sized_for = self.shape
        self.engine.log.append(("size", self.shape))
        return 1000 * self.shape[0]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 64 == 0, "256 on a GPU, as torch allocates there"
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        assert self.sized_for == self.shape, "the memory is for other sizes"
        address, size = self.memory
        assert address
        assert size == 1000 * self.shape[0]
        ctypes.memset(address, 0, size)  # it is the caller's to use
        self.engine.log.append(("run", stream_handle))
        count = int(np.prod(self.shape))
        x, y = (read(self.addresses[name], count).reshape(self.shape) for name in ("x", "y"))
        y[:] = x * self.engine.weights["module.scale"] + self.engine.weights["module.shift"]
        return True


class Refitter:
    def __init__(self, engine: ICudaEngine, _logger: Logger) -> None:
        self.engine = engine
        self.pending: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return ["module.scale", "module.shift", "constant of the engine"]

    def get_missing_weights(self) -> list[str]:
        fused = {"module.scale", "module.shift"}
        return sorted(fused - self.pending.keys()) if fused & self.pending.keys() else []

    def set_named_weights(self, name: str, weights: Weights, location: TensorLocation = TensorLocation.HOST) -> bool:
        assert location is TensorLocation.HOST, "no tensor is on a GPU here"
        self.pending[name] = weights
        return name not in self.engine.rejected

    def refit_cuda_engine(self) -> bool:
        return self._refit(("refit",))

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        return self._refit(("refit", stream_handle))

    def _refit(self, entry: tuple[Any, ...]) -> bool:
        if self.get_missing_weights():
            return False
        self.engine.log.append((*entry, *sorted(self.pending)))
        self.engine.weights |= {name: weights.values.copy() for name, weights in self.pending.items()}
        self.pending.clear()
        return True


class Runtime:
    engines: list[ICudaEngine]

    def __init__(self, _logger: Logger) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if plan != b"plan":
            return None
        Runtime.engines.append(ICudaEngine())
        return Runtime.engines[-1]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *limits: Dims) -> None:
        self.shapes[name] = tuple(tuple(dims[i] for i in range(len(dims))) for dims in limits)


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.profiles: list[IOptimizationProfile] = []

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.append(flag)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        assert enable
        self.flags.append(feature)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return 0


class ITensor:
    name, shape = "x", Dims((-1, 3))


class INetworkDefinition:
    num_inputs = 1

    def get_input(self, _index: int) -> ITensor:
        return ITensor()


class Builder:
    configs: list[IBuilderConfig]

    def __init__(self, _logger: Logger) -> None: ...

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        Builder.configs.append(IBuilderConfig())
        return Builder.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, _network: INetworkDefinition, _config: IBuilderConfig) -> bytes | None:
        return b"plan"


class OnnxParser:
    def __init__(self, _network: INetworkDefinition, _logger: Logger) -> None: ...

    def parse_from_file(self, _path: str) -> bool:
        return True


def stand_in(release: str = "11.4.0") -> ModuleType:
    """Return a module with everything above, and nothing built or loaded yet."""
    module = ModuleType("tensorrt")
    module.__dict__.update({name: value for name, value in globals().items() if isinstance(value, type)})
    module.__dict__["__version__"] = release
    Runtime.engines, Builder.configs = [], []
    return module
