"""Engine options: settings that are fixed for the life of an engine process."""

from __future__ import annotations

from dataclasses import dataclass

#: Accelerators: compile if the device supports it, none, compile, or TensorRT.
ACCELERATORS = ("auto", "eager", "compile", "tensorrt")


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
