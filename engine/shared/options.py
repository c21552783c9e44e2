"""Engine options: settings that are fixed for the life of an engine process."""

from __future__ import annotations

from dataclasses import dataclass

#: Accelerators: what the device supports of compile and CUDA graphs, none, compile, CUDA graphs alone, or TensorRT.
ACCELERATORS = ("auto", "eager", "compile", "graphs", "tensorrt")


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine process.

    ``device`` is auto or a device of torch. ``offline`` and ``allow_pickle`` restrict and permit ways to load models.
    ``downloads`` are the hub names that may be downloaded, None for all; other names come from the local cache.
    ``hooks`` is the folder of user hooks, empty for none. ``accelerate`` is one of ACCELERATORS.
    """

    device: str = "auto"
    offline: bool = False
    allow_pickle: bool = False
    hooks: str = ""
    accelerate: str = "eager"
    #: Let ``/hook/fault/kind`` make the decoder fail, for stress tests.
    fault_injection: bool = False
    downloads: frozenset[str] | None = None
    #: Replay CUDA graphs on a GPU. The bridge clears it after a capture that a process does not survive.
    cuda_graphs: bool = True
