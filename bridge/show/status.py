"""The status of a show, for the status line, the panel, ``/status.json`` and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.shared.messages import EngineStatus
from engine.shared.parameter import Value


@dataclass(frozen=True)
class ShowStatus:
    """Everything that is known of a show at one moment.

    ``fps``, ``latency_ms`` and ``gap_ms``, the longest time between two pictures, are over the last two seconds.
    ``frames`` is the total of transformed frames, ``gaps`` that of gaps over a tenth of a second.
    ``engine`` is None until the engine is ready for the first time.
    """

    fps: float
    latency_ms: float
    frames: int
    gap_ms: float
    gaps: int
    engine: EngineStatus | None
    engine_pid: int | None
    engine_ready: bool
    engine_starts: int
    errors: int
    last_error: str
    source: str
    source_frames: int
    second: str
    second_frames: int
    sinks: Mapping[str, int]
    osc_messages: int
    rejected: int
    last_rejection: str
    snapshot: int
    parameters: Mapping[str, Value]
    show: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON, under the published keys."""
        status = dict(vars(self))
        status["refused"], status["last_refusal"] = status.pop("rejected"), status.pop("last_rejection")
        status["engine"] = self.engine.as_dict() if self.engine is not None else {}
        return status
