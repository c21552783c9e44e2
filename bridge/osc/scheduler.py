"""Delayed execution of OSC bundles whose time tag lies ahead."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
MAX_PENDING_BUNDLES = 10_000


class BundleScheduler:
    """Runs callbacks when they are due, on one thread that starts with the first of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._condition = threading.Condition()
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def schedule(self, delay: float, callback: Callable[[], None]) -> bool:
        """Run ``callback`` in ``delay`` seconds. Return False if MAX_PENDING_BUNDLES are waiting."""
        with self._condition:
            if len(self._heap) >= MAX_PENDING_BUNDLES:
                return False
            heapq.heappush(self._heap, (time.perf_counter() + delay, next(self._count), callback))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="osc-bundles", daemon=True)
                thread.start()  # raises where the system has no thread left: the next bundle tries again
                self._thread = thread
            self._condition.notify()
        return True

    def close(self) -> None:
        """Drop all callbacks and end the thread."""
        with self._condition:
            self._closed = True
            self._heap.clear()
            self._condition.notify()

    def _run(self) -> None:
        limit = RateLimit()
        while True:
            with self._condition:
                while not self._closed and (not self._heap or self._heap[0][0] > time.perf_counter()):
                    self._condition.wait(self._heap[0][0] - time.perf_counter() if self._heap else None)
                if self._closed:
                    return
                _, _, callback = heapq.heappop(self._heap)
            try:
                callback()
            except Exception:  # one bundle must not end the thread
                if limit.passes()[0]:
                    log.exception("a scheduled OSC bundle failed")
