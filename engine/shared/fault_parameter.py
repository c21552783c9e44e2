"""The parameter by which a stress test makes the engine's decoder fail. No show has it unless a test declares it."""

from __future__ import annotations

from engine.shared.parameter import Parameter

NO_FAULT, NAN, OUT_OF_MEMORY, DEVICE_LOST = FAULTS = ("none", "nan", "out of memory", "device lost")
#: Declared like a parameter of an effect, and only used with ``EngineOptions.fault_injection``.
FAULT_PARAMETER = Parameter("/hook/fault/kind", "choice", NO_FAULT, "Fault of the decoder", choices=FAULTS)
