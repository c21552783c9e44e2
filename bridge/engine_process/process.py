"""One life of the engine process: spawned, made ready to begin, begun with the values of the moment, ended."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from bridge.engine_process import import_prefetch as readahead
from bridge.engine_process.tcmalloc import installed, kept_to_itself, preloaded
from engine.shared.mailbox import Mailboxes
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot

#: Seconds of silence after which a running engine counts as hung, at least; and while it loads, which may hold it up.
HUNG, HUNG_LOADING = 2.5, 15.0
#: Ticks that a single one may take as long as; and while values that it was sent may have made it heavier, by steps and by guidance.
TICKS, TICKS_CHANGED = 10, 20
#: How far a reserve steps back for the stream while it is made ready, as a nice value: the stream loses little, the reserve takes longer.
NICE = 7


def _engine_process(pipe: Connection, boxes: Mailboxes, options: EngineOptions, reserve: bool) -> None:
    """The spawned process's first lines: the engine is imported there, by name, never here. It begins with the snapshot that it is sent."""
    logging.basicConfig(level=logging.INFO, format="engine: %(message)s")
    kept_to_itself()
    gc.disable()  # until it runs: what is imported and loaded stays, and looking it through for garbage over and over takes long
    try:
        if reserve:
            stepping_back(_prepare)
        worker = importlib.import_module("engine.worker.process")
        pipe.send(("waiting", None))
        snapshot = pipe.recv()
        if snapshot != "stop":
            worker.run(pipe, boxes, options, snapshot)
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # nobody is there to begin for


def _prepare() -> None:
    importlib.import_module("engine.worker.process").prepare()
    readahead.note(importlib.import_module("engine.models.hf_imports").imported_files())


def stepping_back(work: Callable[[], None]) -> None:
    """Does ``work``, on Linux on a thread of lower priority: a process that once has a lower one does not get it back, a thread ends."""

    def step_back() -> None:
        if sys.platform.startswith("linux"):  # elsewhere it is asked for otherwise: not written, never run there
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)

    with ThreadPoolExecutor(1, initializer=step_back) as pool:
        pool.submit(work).result()


class EngineProcess:
    """An engine process, which waits until ``begin``; as a ``reserve`` with everything imported. Raises OSError where none can be had."""

    def __init__(self, context: SpawnContext, boxes: Mailboxes, options: EngineOptions, reserve: bool = False) -> None:
        if not reserve:
            readahead.begin()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_engine_process, args=(theirs, boxes, options, reserve), name="phosphene-engine", daemon=True
        )
        try:
            with preloaded(installed()):
                self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def waits(self) -> bool:
        """Whether it has imported everything and waits to begin; to be asked only before."""
        return self.alive and self.pipe.poll()

    def begin(self, snapshot: Snapshot) -> None:
        """Lets it run with ``snapshot``."""
        self.pipe.send(snapshot)

    def end(self, hang_timeout: float) -> None:
        """Asks it to stop, and makes it stop after ``patience`` seconds."""
        try:
            self.pipe.send("stop")
        except OSError:
            pass  # it is gone already
        self.process.join(hang_timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(2)
        self.pipe.close()


def hang_timeout(status: Mapping[str, Any], sent: int) -> float:
    """How long an engine that reported ``status``, and was last sent the snapshot numbered ``sent``, may be silent, in seconds."""
    ticks = TICKS if status.get("snapshot") == sent else TICKS_CHANGED
    return max(HUNG_LOADING if status.get("loading") else HUNG, ticks * float(status.get("tick_ms") or 0.0) / 1000)
