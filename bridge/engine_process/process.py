"""One engine process: spawned, prepared, begun with a snapshot, ended."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

from bridge import console
from bridge.engine_process import import_prefetch, tcmalloc
from bridge.engine_process.engine_link import EngineLink
from bridge.logs import ConsoleHandler
from engine.shared.hub_environment import configure_hub
from engine.shared.mailbox import Mailboxes
from engine.shared.messages import EngineStatus, FromEngine, Received, Stop, ToEngine, Waiting
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.shared.timer import request_fine_timers

#: Shortest silence, in seconds, after which a running engine counts as hung; and while it loads, which may hold it up.
HANG_SECONDS, HANG_SECONDS_LOADING = 2.5, 15.0
#: Hang timeout in median tick times: normally, and after a change of values that may have made ticks slower.
HANG_TICKS, HANG_TICKS_AFTER_CHANGE = 10, 20
#: Longest wait for the end of a process that was killed, in seconds; a driver may hold it for ever.
KILL_SECONDS = 2.0
#: Nice value added to a standby's threads while it prepares: the stream loses little, the standby takes longer.
PREPARE_NICE = 7


def _engine_process(pipe: Connection, boxes: Mailboxes, options: EngineOptions, standby: bool) -> None:
    """Run the spawned process: the engine is imported here, by name, and begins with the snapshot that it is sent."""
    console.configure()
    request_fine_timers()
    configure_hub(options.offline)
    logging.basicConfig(level=logging.INFO, format="engine: %(message)s", handlers=[ConsoleHandler()])
    tcmalloc.forget_preload()
    gc.disable()  # until it runs: imports and weights stay, and collecting over them again and again takes long
    try:
        if standby:
            run_with_low_priority(_prepare)
        process = importlib.import_module("engine.worker.process")
        pipe.send(Waiting())
        snapshot = pipe.recv()
        if not isinstance(snapshot, Stop):
            pipe.send(Received(snapshot.number))
            process.run(pipe, boxes, options, snapshot)
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the bridge is gone


def _prepare() -> None:
    importlib.import_module("engine.worker.process").prepare()
    import_prefetch.record(importlib.import_module("engine.models.hf_imports").imported_files())


def run_with_low_priority(work: Callable[[], None]) -> None:
    """Run ``work``, on Linux on a thread of lower priority.

    A process that has lowered its priority cannot raise it again; a thread ends.
    """

    def lower_priority() -> None:
        if sys.platform.startswith("linux"):  # other systems have other calls: not written, never run there
            priority = os.getpriority(os.PRIO_PROCESS, 0) + PREPARE_NICE
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), priority)

    with ThreadPoolExecutor(1, initializer=lower_priority) as pool:
        pool.submit(work).result()


class EngineProcess:
    """An engine process that waits until ``begin``; a ``standby`` imports everything meanwhile.

    No method waits for an engine that does not read or write. ``notify`` is called, on another thread, when there is
    something to do. Raises OSError where no process can be started.
    """

    def __init__(
        self,
        context: SpawnContext,
        boxes: Mailboxes,
        options: EngineOptions,
        notify: Callable[[], None],
        standby: bool = False,
    ) -> None:
        if not standby:
            import_prefetch.start()
        pipe, engine_pipe = context.Pipe()
        self.process = context.Process(
            target=_engine_process, args=(engine_pipe, boxes, options, standby), name="phosphene-engine", daemon=True
        )
        try:
            with tcmalloc.preload(tcmalloc.find_library()):
                self.process.start()
        except BaseException:
            pipe.close()
            raise
        finally:
            engine_pipe.close()
        self.link = EngineLink(pipe, notify)

    @property
    def pid(self) -> int | None:
        """The process number, None once it has ended."""
        return self.process.pid if self.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.is_alive()

    @property
    def sentinel(self) -> int:
        """A handle that becomes ready when the process ends, for ``multiprocessing.connection.wait``."""
        return self.process.sentinel

    @property
    def is_waiting(self) -> bool:
        """Whether everything is imported and ``begin`` may be called; only meaningful before that."""
        return self.alive and self.link.has_messages

    @property
    def can_send(self) -> bool:
        """Whether the engine has received the snapshot before."""
        return self.link.can_send

    def begin(self, snapshot: Snapshot) -> None:
        """Let the engine run with ``snapshot``. Raises what pickling it raises."""
        self.link.send(snapshot)

    def send(self, message: ToEngine) -> None:
        """Let the engine follow a snapshot, or what else it is sent. Raises what pickling it raises."""
        self.link.send(message)

    def messages(self) -> tuple[list[FromEngine], bool]:
        """Return the messages since the last call, and whether there may be more: False once the process has ended."""
        alive = self.alive and not self.link.ended  # asked before its last messages are read
        if not alive:
            self.link.drain()
        return self.link.messages(), alive

    def end(self, grace_seconds: float) -> None:
        """Ask the process to stop, and kill it after ``grace_seconds``; 0 kills it at once."""
        if grace_seconds:
            self.link.send(Stop())
            self.process.join(grace_seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(KILL_SECONDS)
        self.link.close()


def hang_timeout(status: EngineStatus | None, sent: int) -> float:
    """Return how long an engine may be silent, in seconds.

    ``status`` is its last report, ``sent`` the number of the last snapshot that it was sent.
    """
    if status is None:
        return HANG_SECONDS
    ticks = HANG_TICKS if status.snapshot == sent else HANG_TICKS_AFTER_CHANGE
    shortest = HANG_SECONDS_LOADING if status.loading else HANG_SECONDS
    return max(shortest, ticks * status.tick_ms / 1000)
