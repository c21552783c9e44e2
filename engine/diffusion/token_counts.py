"""Counts of tokens that were computed and skipped, and the share that was computed over the last second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

#: Length of the window over which the share is measured, in seconds.
WINDOW_SECONDS = 1.0


class TokenCounts:
    """Sums over denoiser calls: ``computed`` and ``skipped`` tokens, and ``still`` frames, which needed no call.

    A stream that takes over another one's place counts on in its counts. So they begin with the process, and never
    again. ``clock`` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, int, int]] = deque()
        self.computed = self.skipped = self.still = 0

    def add(self, computed: int, skipped: int) -> None:
        """Count the tokens of a call."""
        self.computed += computed
        self.skipped += skipped
        self._calls.append((self._clock(), computed, skipped))
        self._drop_old()

    def add_still(self, frames: int, tokens: int) -> None:
        """Count frames of ``tokens`` each that needed no call."""
        self.still += frames
        self.add(0, frames * tokens)

    def share(self) -> float:
        """Return the share of the tokens that was computed over the last second; of the last call where that is older.

        1 before the first call.
        """
        self._drop_old()
        computed, skipped = (sum(call[i] for call in self._calls) for i in (1, 2))
        return computed / (computed + skipped) if computed or skipped else 1.0

    def _drop_old(self) -> None:
        oldest = self._clock() - WINDOW_SECONDS
        while len(self._calls) > 1 and self._calls[0][0] < oldest:
            self._calls.popleft()
