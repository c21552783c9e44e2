"""Starts, watches and restarts the engine process, and carries snapshots in and metrics out."""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from bridge.control.state import State
from engine.mailbox import Boxes, Mailbox
from engine.parameters import Options, Snapshot

log = logging.getLogger(__name__)
#: Pause before a restart, doubled while the engine dies young, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
#: A loop that reports nothing for this long, once it is running, is taken for dead, in seconds.
SILENCE = 30.0


def _engine_process(pipe: Connection, boxes: Boxes, options: Options, snapshot: Snapshot) -> None:
    """The spawned process's first lines: the engine is imported there, by name, never here."""
    logging.basicConfig(level=logging.INFO, format="engine: %(message)s")
    importlib.import_module("engine.worker").run(pipe, boxes, options, snapshot)


class Supervisor:
    """The life of the engine process. One thread watches; it alone talks through the pipe.

    ``status`` is the engine's last report, ``refused`` the reason why its very first start failed.
    """

    def __init__(self, state: State, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._context, self._state, self._options = context, state, options
        self.boxes = Boxes(Mailbox(context), Mailbox(context), Mailbox(context))
        self.status: Mapping[str, Any] = {}
        self.errors = self.starts = 0
        self.last_error = self.refused = ""
        self.ready = threading.Event()
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._process: Any = None
        self._heard_at = 0.0
        state.on_change(self._changed.set)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Starts the engine and the watch over it."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The engine's process number, None between two lives."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    @property
    def silence(self) -> float:
        """Seconds since the running engine last said something; endless while there is none."""
        return time.monotonic() - self._heard_at if self.ready.is_set() else math.inf

    def close(self) -> None:
        """Stops the engine, by force after 3 s, and frees the shared memory."""
        self._stop.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(6)
        for box in self.boxes:
            box.close()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            born = time.monotonic()
            try:
                self._live()
                reason = f"the engine died (exit code {self._process.exitcode}); starting it again, the output holds"
            except Exception as error:  # no memory for a process, no handle left: it may be otherwise in a moment
                reason = (
                    f"the engine could not be started: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
                )
            if self.refused or self._stop.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - born > 30 else min(pause * 2, LONGEST_PAUSE)
            self._error(reason)
            self._stop.wait(pause)

    def _live(self) -> None:
        """One life of the engine, from its start to its end."""
        ours, theirs = self._context.Pipe()
        snapshot = self._state.effective()
        arguments = (theirs, self.boxes, self._options, snapshot)
        self._process = self._context.Process(target=_engine_process, args=arguments, name="phosphene-engine", daemon=True)
        self._process.start()
        theirs.close()
        self.starts += 1
        sent, self._heard_at = snapshot.number, time.monotonic()
        try:
            while not self._stop.is_set():
                if self._state.number != sent and self.ready.is_set():
                    current = self._state.effective()
                    ours.send(current)
                    sent = current.number
                if ours.poll(0.005 if self._changed.is_set() else 0.02):
                    self._heard(*ours.recv())
                    self._heard_at = time.monotonic()
                elif not self._process.is_alive():
                    break
                elif self.silence > SILENCE and self.ready.is_set():
                    self._error(f"the engine has said nothing for {SILENCE:.0f} s")
                    break
                self._changed.clear()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.ready.clear()
            self._end(ours)

    def _end(self, pipe: Connection) -> None:
        try:
            pipe.send("stop")
        except OSError:
            pass  # it is gone already
        self._process.join(3 if self._stop.is_set() else 0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(2)
        pipe.close()

    def _heard(self, kind: str, payload: Any) -> None:
        if kind in ("ready", "status"):
            self.status = payload
            if kind == "ready":
                self.ready.set()
                log.info("engine ready: %s on %s, %s, %s", payload["model"], payload["device"], payload["dtype"], payload["size"])
        elif kind == "refused":
            if self.starts == 1:
                self.refused = payload
            else:
                self._error(payload)
        elif kind == "note":
            log.info("%s", payload)
        elif kind == "reloaded":
            log.info("engine now runs %s", payload)
        elif kind == "kept":
            reason, running, refused = payload
            self._error(f"{reason}; the running stream goes on")
            current = self._state.snapshot()
            # What was wished for is taken back, unless something else has been wished for since.
            self._state.put({name: running[name] for name in running if current[name] == refused[name]})
        else:
            self._error(payload)

    def _error(self, text: str) -> None:
        self.errors += 1
        self.last_error = text
        log.error("%s", text)
