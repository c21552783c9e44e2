"""Reports of the tokens that were computed, for the panel: at a limited rate, and only where somebody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from engine.diffusion.region_map import PendingMap
from engine.diffusion.region_sampler import RegionSampler
from engine.shared.errors import first_line
from engine.shared.messages import RegionMap

log = logging.getLogger(__name__)
#: Shortest time between two maps, in seconds.
INTERVAL_SECONDS = 0.1


class RegionReport:
    """Reads the map of a stream's tokens for the bridge. ``clock`` returns seconds.

    The frame loop waits for no device: a map that a GPU is still copying is sent at a later tick.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._next = clock, 0.0
        self._pending: PendingMap | None = None
        self._last: RegionMap | None = None

    def poll(self, regions: RegionSampler, is_watched: bool) -> RegionMap | None:
        """Return the map where one is due and differs from the last one, else None.

        A map without rows ends the reports where no token is skipped any more.
        """
        if not is_watched:
            self._pending = self._last = None
            return None
        try:
            region_map = self._read(regions)
        except Exception as error:  # no reason to end a stream that works
            self._pending = None
            log.warning("the map of the regions cannot be read: %s", first_line(error))
            return None
        if region_map is None or region_map == self._last:
            return None
        self._last = region_map
        return region_map

    def _read(self, regions: RegionSampler) -> RegionMap | None:
        """Begin to read a map where one is due, and return it once it is there."""
        if self._pending is None:
            now = self._clock()
            if now < self._next:
                return None
            self._next = now + INTERVAL_SECONDS
            if not regions.is_active:
                return RegionMap()
            self._pending = regions.begin_map()
        if not self._pending.done():
            return None
        cells, self._pending = self._pending.result(), None
        rows, columns = cells.shape
        return RegionMap(rows, columns, cells.tobytes(), round(regions.share, 2))
