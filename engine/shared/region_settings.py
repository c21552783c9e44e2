"""The typed view of ``/regions…``, see ``settings.py``."""

from __future__ import annotations

from dataclasses import dataclass

from engine.shared.view import parameter


@dataclass(frozen=True)
class RegionSettings:
    """Region-adaptive sampling: which tokens are computed in a step; see ``engine/diffusion/regions.py``."""

    mode: str = parameter("/regions")
    share: float = parameter("/regions/share")
    metric: str = parameter("/regions/metric")
    starvation: float = parameter("/regions/starvation")
    high: float = parameter("/regions/high")
    start: int = parameter("/regions/start")
    reset: str = parameter("/regions/reset")
    ramp: float = parameter("/regions/ramp")
    threshold: float = parameter("/regions/threshold")
    refresh: int = parameter("/regions/refresh")
    text: bool = parameter("/regions/text")

    @property
    def resets(self) -> tuple[int, ...]:
        """Return the full steps after the first ones, from 0."""
        return tuple(map(int, self.reset.split()))
