"""A worker without processes: its pipe ends in the tests."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Iterator

import pytest

from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.loop import Worker
from tests.engine.worker.bridge_end import SMALL, Bridge


@pytest.fixture
def engine() -> Iterator[tuple[Worker, Bridge]]:
    context = multiprocessing.get_context("spawn")
    boxes = Mailboxes(*(Mailbox(context, 64) for _ in range(3)))
    bridge_pipe, engine_pipe = context.Pipe()
    interval = sys.getswitchinterval()
    gc.freeze()  # as the engine process does
    yield Worker(engine_pipe, boxes, EngineOptions("cpu"), Snapshot(SMALL)), Bridge(bridge_pipe)
    gc.unfreeze()
    sys.setswitchinterval(interval)
    for box in boxes:
        box.close()
