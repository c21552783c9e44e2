"""An engine process that behaves as a test says, behind a real pipe."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from bridge.engine_process.engine_link import EngineLink
from bridge.engine_process.supervisor import Supervisor
from engine.shared.messages import (
    EngineStatus,
    FromEngine,
    ModelRejected,
    Ready,
    Received,
)
from engine.shared.snapshot import Snapshot
from engine.shared.table import RELOAD_PARAMETERS

STATUS = EngineStatus("pocket", "cpu", "bfloat16", "512x512", {"/model": "pocket"}, frames=9)


class Engine:
    """An engine process that follows ``behaviour`` for its snapshot: run, die, or reject the model.

    Its pipe is a real one, and so is the handle that reports its end.
    """

    behaviour: Callable[[Snapshot], str] = staticmethod(lambda _snapshot: "run")
    accelerator = "eager"
    begun: ClassVar[list[tuple[float, str]]] = []
    pid = 1

    def __init__(self, *arguments: object) -> None:
        pipe, self.engine_pipe = multiprocessing.Pipe()
        notify = arguments[3] if len(arguments) > 3 else lambda: None
        self.link = EngineLink(pipe, notify)  # type: ignore[arg-type]
        self.sentinel, self._alive_pipe = multiprocessing.Pipe(duplex=False)
        self.alive = self.is_waiting = True
        self.process = type("Process", (), {"exitcode": -9})()
        self.received: list[object] = []

    @property
    def can_send(self) -> bool:
        return self.link.can_send

    def begin(self, snapshot: Snapshot) -> None:
        Engine.begun.append((time.perf_counter(), snapshot.model.model))
        behaviour = Engine.behaviour(snapshot)
        if behaviour == "reject":
            self.report(ModelRejected(f"{snapshot.model.model} cannot be read"))
        elif behaviour == "run":
            running = {name: snapshot[name] for name in RELOAD_PARAMETERS}
            status = replace(STATUS, model=snapshot.model.model, running=running, accelerator=Engine.accelerator)
            self.report(Ready(status))
        if behaviour != "run":
            self.die()

    def send(self, snapshot: Snapshot) -> None:
        self.link.send(snapshot)

    def messages(self) -> tuple[list[FromEngine], bool]:
        alive = self.alive
        if not alive:
            self.link.drain()
        return self.link.messages(), alive

    def report(self, message: FromEngine) -> None:
        """Send a message to the bridge."""
        self.engine_pipe.send(message)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that were sent to the engine, and receive those that wait."""
        while self.engine_pipe.poll():
            message = self.engine_pipe.recv()
            self.received.append(message)
            if isinstance(message, Snapshot):
                self.engine_pipe.send(Received(message.number))
        return [message for message in self.received if isinstance(message, Snapshot)]

    def die(self) -> None:
        self.alive = False
        self.engine_pipe.close()
        self._alive_pipe.close()

    def end(self, _grace_seconds: float) -> None:
        self.alive = False


def engine_of(started: Supervisor) -> Engine:
    assert isinstance(started.process, Engine)
    return started.process


def behave_only_for(model: str, behaviour: str) -> Callable[[Snapshot], str]:
    return staticmethod(lambda snapshot: behaviour if snapshot.model.model == model else "run")  # type: ignore[return-value]
