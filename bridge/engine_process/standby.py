"""The standby: a second engine process that has imported everything and takes over when the running one ends."""

from __future__ import annotations

from collections.abc import Callable

from bridge.engine_process.process import EngineProcess

#: Seconds between the engine's readiness and the start of a standby; doubled while standbys die early, to the maximum.
DELAY_SECONDS, MAX_DELAY_SECONDS = 2.0, 600.0
#: The same while the engine compiles: starting another process would hold that up.
DELAY_SECONDS_COMPILING = 90.0


class Standby:
    """Keeps one process waiting. ``start`` makes it; all methods belong to the supervisor's thread."""

    def __init__(self, start: Callable[[], EngineProcess], enabled: bool = True) -> None:
        self._start, self._enabled = start, enabled
        self._process: EngineProcess | None = None
        self._not_before = 0.0
        self.delay = DELAY_SECONDS

    @property
    def pid(self) -> int | None:
        """The number of the process that is ready to take over; None without one."""
        process = self._process
        return process.pid if process is not None and process.is_waiting else None

    @property
    def alive(self) -> bool:
        """Whether a process waits or prepares."""
        return self._process is not None and self._process.alive

    def take(self) -> EngineProcess | None:
        """Hand the process over, None where there is none that lives."""
        process, self._process = self._process, None
        if process is not None and not process.alive:
            process.end(0.0)
            return None
        return process

    def maintain(self, now: float, ready_since: float, compiling: bool) -> str:
        """Start a process when it is time; replace one that died. Return an error where none can be started.

        ``now`` and ``ready_since``, when the engine became ready, are monotonic seconds.
        """
        process = self._process
        if process is None:
            delay = DELAY_SECONDS_COMPILING if compiling else DELAY_SECONDS
            if self._enabled and now > max(ready_since + delay, self._not_before):
                try:
                    self._process = self._start()
                except Exception as error:  # no memory or no handle left, which may pass: the engine runs on
                    self._retry_later(now)
                    return f"no standby engine now: {error}"
        elif not process.alive:
            process.end(0.0)
            self._process = None
            self._retry_later(now)
        elif process.is_waiting:
            self.delay = DELAY_SECONDS
        return ""

    def _retry_later(self, now: float) -> None:
        self._not_before = now + self.delay
        self.delay = min(2 * self.delay, MAX_DELAY_SECONDS)

    def discard(self) -> None:
        """End the waiting process; ``maintain`` starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.end(0.0)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end(0.5)
