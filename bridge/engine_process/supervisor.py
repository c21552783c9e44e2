"""Starts, watches and restarts the engine process, and carries snapshots in and metrics out."""

from __future__ import annotations

import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Mapping
from typing import Any

from bridge.control.state import State
from bridge.engine_process.process import EngineProcess, hang_timeout
from engine.shared.mailbox import Mailboxes, Mailbox
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.table import TABLE

log = logging.getLogger(__name__)
#: Pause before a restart, doubled while the engine dies young, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
#: A life that gave pictures for this long went well, in seconds; deaths in a row, without one that did, that a model is given.
SETTLED, DEATHS = 5.0, 3
#: Seconds after the engine is ready until the next one is made ready beside it, doubled while those die before they are, up to the other.
SPARE, LONGEST_SPARE = 2.0, 600.0
#: The same while it compiles, which starting another engine beside would hold up.
SPARE_BUSY = 90.0
#: What a new engine is needed for, or a reload: the model and how it is run.
MODEL = tuple(name for name, parameter in TABLE.items() if not parameter.live)


class Supervisor:
    """The life of the engine process. One thread watches; it alone talks through the pipe.

    ``status`` is the engine's last report, ``refused`` the reason why its very first start failed. With ``spare`` a second process waits,
    everything imported, and takes over when the first dies.
    """

    def __init__(self, state: State, options: EngineOptions, spare: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._context, self._state, self._options = context, state, options
        self.boxes = Mailboxes(Mailbox(context), Mailbox(context), Mailbox(context))
        self.status: Mapping[str, Any] = {}
        self.errors = self.starts = 0
        self.last_error = self.refused = ""
        self.ready = threading.Event()
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._life: EngineProcess | None = None
        self._spare: EngineProcess | None = None
        self._spares, self._spare_at, self._spare_pause = spare, 0.0, SPARE
        self._heard_at = self._ready_at = 0.0
        self._good: dict[str, Value] = {}
        self._deaths = 0
        self._unwilling = False
        state.on_change(self._changed.set)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Starts the engine and the watch over it."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The engine's process number, None between two lives."""
        life = self._life
        return life.process.pid if life is not None and life.alive else None

    @property
    def reserve(self) -> int | None:
        """The number of the process that waits, ready to take over; None where there is none, or it is not ready."""
        spare = self._spare
        return spare.process.pid if spare is not None and spare.waits else None

    @property
    def compiling(self) -> bool:
        """Whether the engine last said that parts of its model are being compiled."""
        return str(self.status.get("accelerator", "")).startswith("compiling")

    @property
    def silence(self) -> float:
        """Seconds since a running engine last said something; endless where none ever did."""
        return time.monotonic() - self._heard_at if self._heard_at else math.inf

    def close(self) -> None:
        """Stops the engine, by force after 3 s, and frees the shared memory."""
        self._stop.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(6)
        for box in self.boxes:
            box.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                reason = self._live()
            except Exception as error:  # no memory for a process, no handle left: it may be otherwise in a moment
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reason = f"the engine could not be started: {lines[0]}"
            if self.refused or self._stop.is_set():
                break
            self._error(f"{reason}; the output holds")
            self._deaths += 1
            pause = min(FIRST_PAUSE * 2 ** (self._deaths - 1), LONGEST_PAUSE)
            self._retreat()
            self._stop.wait(pause)
        if self._spare is not None:
            self._spare.end(0.5)

    def _live(self) -> str:
        """One life of the engine, from its start to its end; how it ended."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.alive:
            spare.end(0.0)
            spare = None
        life = self._life = spare or EngineProcess(self._context, self.boxes, self._options)
        snapshot = self._state.effective()
        self.starts += 1
        looked = time.monotonic()
        sent, silent = snapshot.number, 0.0
        try:
            life.begin(snapshot)
            while not self._stop.is_set() and not silent:
                if self._state.number != sent and self.ready.is_set():
                    current = self._state.effective()
                    life.pipe.send(current)
                    sent = current.number
                if life.pipe.poll(0.005 if self._changed.is_set() else 0.02):
                    self._heard(*life.pipe.recv())
                    self._heard_at = time.monotonic() if self.ready.is_set() else self._heard_at
                elif not life.alive:
                    break
                self._changed.clear()
                now = time.monotonic()
                if now - looked > 0.5:  # this process was held up itself, or the machine slept: nobody was silent
                    self._heard_at = min(now, self._heard_at + now - looked)
                looked = now
                if self.ready.is_set() and self.silence > hang_timeout(self.status, sent):
                    silent = self.silence
                self._settle(now)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.ready.clear()
            life.end(3 if self._stop.is_set() else 0.0 if silent else 0.5)
        if silent:
            return f"the engine hangs: it has said nothing for {silent:.1f} s; another takes over"
        return f"the engine died (exit code {life.process.exitcode}); another takes over"

    def _settle(self, now: float) -> None:
        """What a life that goes well is good for: its model is one to go back to, and the next engine is made ready beside it."""
        if not self.ready.is_set() or self.status.get("loading"):
            return
        calm = SPARE_BUSY if self.compiling else SPARE
        if self._spares and self._spare is None and now > max(self._ready_at + calm, self._spare_at):
            try:
                self._spare = EngineProcess(self._context, self.boxes, self._options, reserve=True)
            except Exception as error:  # the one that runs must not end because there is no room for another
                self._spares = False
                self._error(f"no engine can be kept in reserve: {error}")
        elif self._spare is not None and not self._spare.alive:
            self._spare.end(0.0)
            self._spare, self._spare_at = None, now + self._spare_pause
            self._spare_pause = min(2 * self._spare_pause, LONGEST_SPARE)
        elif self._spare is not None and self._spare.waits:
            self._spare_pause = SPARE
        if self.status.get("frames", 0) and now - self._ready_at > SETTLED:
            self._deaths = 0
            self._good = dict(self.status.get("running") or {})

    def _retreat(self) -> None:
        """Back to the model that worked last, where another dies again and again; to the built-in one, where none can be read."""
        wish = {name: self._state.snapshot()[name] for name in MODEL}
        if not self._unwilling and self._deaths < DEATHS:
            return
        back = self._good
        if self._unwilling and back in ({}, wish):
            back = {name: TABLE[name].default for name in MODEL}
        if back and back != wish:
            self._error(f"model {wish['/model']} does not work; back to {back['/model']}")
            self._state.put(back, expected=wish)
            self._deaths = 0
        self._unwilling = False

    def _heard(self, kind: str, payload: Any) -> None:
        if kind in ("ready", "status"):
            self.status = payload
            if kind == "ready":
                self._ready_at = time.monotonic()
                self.ready.set()
                log.info(
                    "engine ready: %s on %s, %s, %s",
                    payload["model"],
                    payload["device"],
                    payload["dtype"],
                    payload["size"],
                )
        elif kind == "refused":
            if self.starts == 1:
                self.refused = payload
            else:
                self._unwilling = True
                self._error(payload)
        elif kind == "waiting":
            pass  # it said so before it began
        elif kind == "note":
            log.info("%s", payload)
        elif kind == "reloaded":
            log.info("engine now runs %s", payload)
            self._ready_at = time.monotonic()
        elif kind == "kept":
            reason, running, refused = payload
            self._error(reason)
            # What was wished for is taken back, unless something else has been wished for since.
            self._state.put(
                {name: running[name] for name in running if running[name] != refused[name]}, expected=refused
            )
        else:
            self._error(payload)

    def _error(self, text: str) -> None:
        self.errors += 1
        self.last_error = text
        log.error("%s", text)
