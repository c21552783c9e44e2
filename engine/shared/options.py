"""Options fixed for the life of an engine process."""

from __future__ import annotations

from dataclasses import dataclass

#: What may make a model fast: compiling it where that can be done, nothing, compiling it, or TensorRT.
ACCELERATORS = ("auto", "eager", "compile", "tensorrt")


@dataclass(frozen=True)
class EngineOptions:
    """What holds for the life of an engine process and is no parameter.

    ``device``; how models are read; the folder of ``hooks``; what makes the model fast, ``accelerate``, one of ACCELERATORS.
    """

    device: str = "auto"
    offline: bool = False
    allow_pickle: bool = False
    hooks: str = ""
    accelerate: str = "eager"
    #: Let ``/hook/fault/kind`` make the decoder fail, for stress tests.
    fault_injection: bool = False
