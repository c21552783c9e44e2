"""The parameter by which a test makes the engine fail. No show has it unless a test declares it."""

from __future__ import annotations

from engine.shared.parameter import Parameter

#: Faults of the decoder: while frames are made.
NO_FAULT, NAN, OUT_OF_MEMORY, DEVICE_LOST = "none", "nan", "out of memory", "device lost"
#: Faults of the value itself: it raises or ends the process while the engine begins with it, or raises as a change.
START_RAISES, START_EXITS, CHANGE_RAISES = "start raises", "start exits", "change raises"
FAULTS = (NO_FAULT, NAN, OUT_OF_MEMORY, DEVICE_LOST, START_RAISES, START_EXITS, CHANGE_RAISES)
#: Declared like a parameter of an effect, and only used with ``EngineOptions.fault_injection``.
FAULT_PARAMETER = Parameter("/hook/fault/kind", "choice", NO_FAULT, "Fault of the engine", choices=FAULTS)
