"""Messages between the two processes. All but ToEngine comes from the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot


@dataclass(frozen=True)
class Stop:
    """End the engine process."""


@dataclass(frozen=True)
class WatchRegions:
    """Report which regions are computed, or stop it."""

    is_on: bool


@dataclass(frozen=True)
class Waiting:
    """The process has imported everything and waits for the snapshot to begin with."""


@dataclass(frozen=True)
class Received:
    """The engine has received the snapshot ``number``; the next one may be sent."""

    number: int


@dataclass(frozen=True)
class EngineStatus:
    """How the engine is doing. Rates are over the last two seconds; totals are since the process began.

    ``snapshot`` is the number of the newest snapshot that it follows, ``running`` the values of the parameters that
    need a reload, ``size`` the working size as WxH, ``rows`` the denoiser rows of the last tick. ``skipped`` frames are
    those of the similarity filter and the ``still`` ones, which needed no denoiser call. ``tokens_computed``,
    ``tokens_skipped`` and their ``region_share``, over the last second, are counted while ``regions`` may be skipped.
    """

    model: str
    device: str
    dtype: str
    size: str
    running: Mapping[str, Value]
    snapshot: int = 0
    accelerator: str = "eager"
    loading: bool = False
    progress: str = ""
    fading: bool = False
    rows: int = 0
    in_flight: int = 0
    skipped: int = 0
    superseded: int = 0
    dropped: int = 0
    fps: float = 0.0
    tick_ms: float = 0.0
    frames: int = 0
    ticks: int = 0
    cpu_s: float = 0.0
    regions: bool = False
    region_share: float = 1.0
    tokens_computed: int = 0
    tokens_skipped: int = 0
    still: int = 0

    @property
    def compiling(self) -> bool:
        """Whether parts of the model are being compiled."""
        return self.accelerator.startswith("compiling")

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return asdict(self) | {"running": dict(self.running)}


@dataclass(frozen=True)
class RegionMap:
    """Which tokens of the picture were computed last: ``cells`` has a byte for each, row by row, 255 or 0 (skipped).

    ``share`` is that of the tokens computed over the last second. Without rows none is skipped any more.
    """

    rows: int = 0
    columns: int = 0
    cells: bytes = b""
    share: float = 1.0


@dataclass(frozen=True)
class Ready:
    """The stream is warm; frames are transformed from now on."""

    status: EngineStatus


@dataclass(frozen=True)
class ModelRejected:
    """The first model cannot be loaded; the process ends."""

    reason: str


@dataclass(frozen=True)
class StartFailed:
    """The engine cannot begin, whatever its live values are; the process ends."""

    reason: str


@dataclass(frozen=True)
class ValuesRejected:
    """Live values that raise an error where they are applied.

    The engine runs with ``running`` in place of ``rejected``; what ``running`` leaves out has its default.
    """

    reason: str
    rejected: Mapping[str, Value]
    running: Mapping[str, Value]


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    text: str


@dataclass(frozen=True)
class EngineError:
    """A line for the log that is counted as an error."""

    text: str


@dataclass(frozen=True)
class GraphsFailed:
    """A CUDA graph could not be recorded, which this process does not survive: it ends, to begin again without."""

    reason: str


@dataclass(frozen=True)
class Reloaded:
    """Another model or size is running."""

    text: str


@dataclass(frozen=True)
class Reverted:
    """Requested values could not be used: the engine keeps ``running`` in place of ``rejected``."""

    reason: str
    running: Mapping[str, Value]
    rejected: Mapping[str, Value]


FromEngine = (
    Waiting
    | Received
    | Ready
    | EngineStatus
    | RegionMap
    | ModelRejected
    | StartFailed
    | ValuesRejected
    | Note
    | EngineError
    | GraphsFailed
    | Reloaded
    | Reverted
)
ToEngine = Snapshot | Stop | WatchRegions
