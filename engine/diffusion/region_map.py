"""The map of the tokens that were computed last, copied off the device without a wait. Not run on a GPU yet."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.runtime.device_lock import device_lock

#: Values of the map.
COMPUTED, SKIPPED = 255, 0


class PendingMap:
    """A map that may still be on its way from the device.

    ``grid`` is its rows and columns. ``active`` are the indices of the computed tokens, in row-major order; None stands
    for all. On CUDA the copy is queued on the current stream, and the frame loop asks ``done`` at a later tick.
    """

    def __init__(self, grid: tuple[int, int], active: Tensor | None) -> None:
        self._grid, self._active = grid, active
        self._event: torch.cuda.Event | None = None
        if active is not None and active.device.type == "cuda":
            host = torch.empty(active.shape, dtype=active.dtype, pin_memory=True)
            self._active = host.copy_(active, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def done(self) -> bool:
        """Return whether ``result`` would return without waiting for a queued copy."""
        return self._event is None or self._event.query()

    def result(self) -> NDArray[np.uint8]:
        """Wait for the map and return it, (rows, columns): COMPUTED or SKIPPED."""
        if self._event is not None:
            self._event.synchronize()
        if self._active is None:
            return np.full(self._grid, COMPUTED, np.uint8)
        with device_lock(self._active.device):
            active = self._active.cpu().numpy()
        cells = np.full(self._grid[0] * self._grid[1], SKIPPED, np.uint8)
        cells[active] = COMPUTED
        return cells.reshape(self._grid)
