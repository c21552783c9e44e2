"""Starts, watches and restarts the engine process; carries snapshots in and reports out."""

from __future__ import annotations

import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from typing import TypeVar

from bridge.control.state import State
from bridge.engine_process.model_fallback import ModelFallback
from bridge.engine_process.process import EngineProcess, hang_timeout
from bridge.engine_process.standby import Standby
from bridge.engine_process.value_fallback import EARLY_SECONDS, ValueFallback
from bridge.engine_process.wakeup import Wakeup
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.mailbox import open_mailboxes
from engine.shared.messages import (
    EngineError,
    EngineStatus,
    FromEngine,
    GraphsFailed,
    ModelRejected,
    Note,
    Ready,
    Received,
    RegionMap,
    Reloaded,
    Reverted,
    StartFailed,
    ValuesRejected,
    Waiting,
    WatchRegions,
)
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from engine.shared.table import RELOAD_PARAMETERS, TABLE
from engine.shared.text import to_line

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Pause before a restart, doubled while engines die early, up to the maximum, in seconds.
RESTART_SECONDS, MAX_RESTART_SECONDS = 0.1, 10.0
#: Pause before another try where not even a process could be started, in seconds.
START_RETRY_SECONDS = 1.0
#: An engine that has run for this long ran well, in seconds.
SUCCESS_SECONDS = 5.0
#: Engines that may end while they replay CUDA graphs; after that the next ones have none.
MAX_GRAPH_DEATHS = 2
#: Longest time between two looks at the engine's life, in seconds.
WATCH_SECONDS = 0.1
#: A longer time between two looks means that this process itself was held up, in seconds.
HELD_UP_SECONDS = 0.5


class Supervisor:
    """The life of the engine process. One thread watches it.

    ``status`` is the engine's last report, ``rejected`` the reason why none has begun and none will. ``region_map`` is
    the newest map of what it computes, None where that is everything or not asked for. With ``standby`` a second
    process waits, everything imported, and takes over when the first one ends.
    """

    def __init__(self, state: State, options: EngineOptions, standby: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._context, self._state, self._options = context, state, options
        self.boxes = open_mailboxes(context, state.snapshot().model.size)
        self.standby = Standby(lambda: self._start_process(standby=True), standby)
        self.fallback, self.value_fallback = ModelFallback(), ValueFallback()
        self.status: EngineStatus | None = None
        self.region_map: RegionMap | None = None
        self._watches_regions = False
        self.errors = self.starts = 0
        self.last_error = self.rejected = self._last_end = ""
        self.ready = threading.Event()
        self.process: EngineProcess | None = None
        self._last_message = self._ready_since = 0.0
        self._frames, self._start_failed = 0, False  # of the present engine
        self._graph_deaths = 0
        self._limit = RateLimit()
        self._begun: Mapping[str, Value] | None = None
        self._stop = threading.Event()
        self._wakeup = Wakeup(context)
        state.on_change(self._wakeup.set)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the engine and the thread that watches it."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The engine's process number, None between two processes."""
        process = self.process
        return process.pid if process is not None else None

    @property
    def silence(self) -> float:
        """Seconds since the last message of a running engine; infinite before the first one."""
        return time.perf_counter() - self._last_message if self._last_message else math.inf

    def watch_regions(self, is_on: bool) -> None:
        """Let the engine report which regions it computes, or stop that; from any thread."""
        self._watches_regions = is_on
        if not is_on:
            self.region_map = None
        self._wakeup.set()

    def close(self) -> None:
        """Stop the engine, by force after 3 s, and free the shared memory."""
        self._stop.set()
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join(6)
        self.boxes.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            starts = self.starts
            try:
                reason = self._run_engine()
            except Exception as error:  # no memory or no handle left: that may pass
                reason = f"the engine could not be started: {first_line(error)}"
            if self.rejected or self._stop.is_set():
                break
            self._log_error(f"{reason}; the output holds")
            if self.starts == starts:  # no process began: that says nothing about the model
                self._stop.wait(START_RETRY_SECONDS)
                continue
            self.fallback.record_death()
            pause = min(RESTART_SECONDS * 2 ** min(self.fallback.deaths - 1, 10), MAX_RESTART_SECONDS)
            try:
                self._fall_back()
            except Exception:  # the next engine may run all the same
                log.exception("the values to fall back to could not be set")
            if self.rejected:
                break
            self._stop.wait(pause)
        self.standby.close()

    def _run_engine(self) -> str:
        """Run one engine process from its start to its end; return how it ended."""
        process = self.process = self.standby.take() or self._start_process()
        self.starts += 1
        self._start_failed, hung = False, False
        try:
            hung = self._watch(process)
        finally:
            silence = self.silence
            self._count_early_death()
            self._count_graph_death()
            self.ready.clear()
            self.region_map = None
            process.end(3 if self._stop.is_set() else 0.0 if hung else 0.5)
        if hung:
            return f"the engine hangs: no message for {silence:.1f} s; restarting it"
        if not self._start_failed:
            self._last_end = f"each ends without a word (exit code {process.process.exitcode})"
        return f"the engine died (exit code {process.process.exitcode}); restarting it"

    def _watch(self, process: EngineProcess) -> bool:
        """Send the newest values and handle every message until the process ends; return True where it hangs.

        Nothing here waits for the engine: one that hangs reads nothing, and values move on all the same.
        """
        snapshot = self._state.effective()
        sent, last_look, watching = snapshot.number, time.perf_counter(), False
        self._frames = 0
        self._begun = self._state.snapshot()
        self._send(process.begin, snapshot)
        while not self._stop.is_set():
            wait([process.sentinel, self._wakeup.reader], WATCH_SECONDS)
            self._wakeup.clear()
            messages, alive = process.messages()
            for message in messages:
                self._guard(self._handle, message)
                self._last_message = time.perf_counter() if self.ready.is_set() else self._last_message
            if not alive:
                break
            if self.ready.is_set() and self._state.number != sent and process.can_send:
                snapshot = self._state.effective()
                self._send(process.send, snapshot)
                sent = snapshot.number
            if self.ready.is_set() and self._watches_regions != watching and process.can_send:
                watching = self._watches_regions
                process.send(WatchRegions(watching))
            now = time.perf_counter()
            if now - last_look > HELD_UP_SECONDS:  # this process was held up, or the machine slept: not the engine
                self._last_message = min(now, self._last_message + now - last_look)
            last_look = now
            if self.ready.is_set() and self.silence > hang_timeout(self.status, sent):
                return True
            self._guard(self._maintain, now)
        return False

    def _guard(self, action: Callable[[T], None], argument: T) -> None:
        """Call ``action``; what it raises is logged, and ends no engine that runs."""
        try:
            action(argument)
        except Exception:
            if self._limit.passes()[0]:
                log.exception("the supervisor failed beside a running engine")

    def _send(self, send: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        """Send a snapshot, without the values that cannot be sent at all."""
        try:
            send(snapshot)
        except Exception as error:  # a value that cannot be pickled
            rejected = {name: value for name, value in snapshot.items() if not isinstance(value, float | int | str)}
            self._reject_values(f"the engine cannot be sent {', '.join(rejected)}: {first_line(error)}", rejected, {})
            values = {name: value for name, value in snapshot.items() if name not in rejected}
            send(Snapshot(values, snapshot.number))

    def _reject_values(self, reason: str, rejected: Mapping[str, Value], running: Mapping[str, Value]) -> None:
        """Set what runs, or the defaults, in place of values that the engine rejects; those set since then stay."""
        self._state.reject(reason, "engine")
        values = {name: TABLE[name].default for name in rejected if name in TABLE} | dict(running)
        if self._begun is not None:
            self._begun = {**self._begun, **values}
        self._state.put(values, expected=rejected)

    def _count_graph_death(self) -> None:
        """Drop CUDA graphs where an engine ended while it recorded them, or a second one while it replayed them."""
        if self.status is None or not self.ready.is_set() or self._stop.is_set() or not self._options.cuda_graphs:
            return
        state = self.status.accelerator
        self._graph_deaths += state == "graphs"
        if state.startswith("recording") or self._graph_deaths >= MAX_GRAPH_DEATHS:
            self._drop_graphs("engines end with CUDA graphs")

    def _drop_graphs(self, reason: str) -> None:
        """Let the next engine, and the standby, run without CUDA graphs."""
        self._log_error(f"{reason}: the next engine runs without CUDA graphs")
        self._options = replace(self._options, cuda_graphs=False)
        self.standby.discard()  # it was started with the options before

    def _count_early_death(self) -> None:
        """Count an engine that has ended as it began, without a reason that frees its values of suspicion."""
        if not self._start_failed and self._is_early() and not self._stop.is_set():
            self.value_fallback.record_death()

    def _is_early(self) -> bool:
        age = time.perf_counter() - self._ready_since if self.ready.is_set() else 0.0
        return not self._frames and age < EARLY_SECONDS

    def _maintain(self, now: float) -> None:
        """Prepare a standby beside an engine that runs well, and remember its values as good."""
        if self._begun is not None and self.ready.is_set() and not self._is_early():
            self.value_fallback.record_begin(self._begun)
            self._begun = None
        status = self.status
        if status is None or not self.ready.is_set() or status.loading:
            return
        error = self.standby.maintain(now, self._ready_since, status.compiling)
        if error:
            self._log_error(error)
        if status.frames and now - self._ready_since > SUCCESS_SECONDS:
            self.fallback.record_success(status.running)
            self.value_fallback.record_success(self._state.snapshot())

    def _fall_back(self) -> None:
        """Go back to values and a model that work where the requested ones do not."""
        snapshot = self._state.snapshot()
        requested = {name: snapshot[name] for name in RELOAD_PARAMETERS}
        if self.value_fallback.gives_up(snapshot):
            named = ", ".join(f"{name.strip('/')} {value}" for name, value in requested.items() if value)
            self.rejected = to_line(f"no engine begins with {named}: {self._last_end}; use another model or size")
            return
        if retreats := self.value_fallback.retreats(snapshot):
            self._log_error(str(retreats[0]))
            self._state.put(retreats[0].values, mixture=(), expected=snapshot)
            return
        values = self.fallback.choose(requested)
        if values is not None:
            self._log_error(f"model {requested['/model']} does not work; back to {values['/model']}")
            self._state.put(values, expected=requested)

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Ready(status):
                self.status, self._ready_since, self._frames = status, time.perf_counter(), status.frames
                self.ready.set()
                log.info("engine ready: %s on %s, %s, %s", status.model, status.device, status.dtype, status.size)
            case EngineStatus(frames=frames):
                self.status, self._frames = message, frames
            case RegionMap(rows=rows):
                self.region_map = message if rows and self._watches_regions else None
            case ModelRejected(reason) if not self.value_fallback.last_begun:
                self.rejected = reason
            case ModelRejected(reason):
                self._start_failed = True
                self.fallback.record_rejection()
                self._log_error(reason)
            case StartFailed(reason):
                self._start_failed, self._last_end = True, reason
                self.value_fallback.record_failure()
                self._log_error(reason)
            case ValuesRejected(reason, rejected, running):
                self._reject_values(reason, rejected, running)
            case Note(text):
                log.info("%s", text)
            case Reloaded(text):
                log.info("engine now runs %s", text)
                self._ready_since = time.perf_counter()
            case Reverted(reason, running, rejected):
                self._log_error(reason)
                # Take back what was requested, unless something else has been requested since.
                values = {name: running[name] for name in running if running[name] != rejected[name]}
                self._state.put(values, expected=rejected)
            case EngineError(text):
                self._log_error(text)
            case GraphsFailed(reason):
                self._drop_graphs(reason)
            case Waiting() | Received():
                pass  # sent before it began; kept by the link

    def _start_process(self, standby: bool = False) -> EngineProcess:
        return EngineProcess(self._context, self.boxes, self._options, self._wakeup.set, standby)

    def _log_error(self, text: str) -> None:
        text = to_line(text)
        self.errors += 1
        self.last_error = text
        log.error("%s", text)
