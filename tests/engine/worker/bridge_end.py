"""The bridge's end of a worker that runs in the tests' process, and calls that fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from engine.shared.frame import Frame
from engine.shared.messages import EngineError, FromEngine, Received
from engine.shared.snapshot import Snapshot
from engine.worker.loop import Worker
from tests.waiting import until

SMALL = {"/size": "64x64", "/steps": 1}
T = TypeVar("T")


@dataclass
class Bridge:
    """The bridge's end of the worker's pipe."""

    pipe: Connection
    messages: list[FromEngine] = field(default_factory=list)

    def messages_of(self, kind: type[T]) -> list[T]:
        """All messages of one kind so far."""
        while self.pipe.poll():
            self.messages.append(self.pipe.recv())
        return [message for message in self.messages if isinstance(message, kind)]

    def send(self, *snapshots: Snapshot) -> None:
        """Send snapshots, and wait until the worker's thread has received them."""
        before = len(self.messages_of(Received))
        for snapshot in snapshots:
            self.pipe.send(snapshot)
        until(lambda: len(self.messages_of(Received)) == before + len(snapshots), 5, "acknowledgement")

    def errors(self) -> list[str]:
        return [message.text for message in self.messages_of(EngineError)]


def tick(worker: Worker, count: int = 1) -> None:
    for _ in range(count):
        worker._tick([Frame(np.full((64, 64, 4), 200, np.uint8))])


def failing(error: Exception) -> Any:
    def begin(_frames: object) -> None:
        raise error

    return begin


def failing_call(error: Exception) -> Any:
    def fail(*_arguments: object) -> None:
        raise error

    return fail
