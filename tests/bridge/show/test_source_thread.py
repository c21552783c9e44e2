"""The thread of a source: a transport that hangs delays the end of a show, and is not closed under its reader."""

from __future__ import annotations

import multiprocessing
import threading
import time

from bridge.control.state import State
from bridge.show.source_thread import SourceThread
from bridge.textures import Source
from engine.shared.mailbox import Mailbox
from tests.waiting import until


class HangingSource(Source):
    """A source whose reads hang until ``answer`` is set."""

    def __init__(self) -> None:
        super().__init__("hanging:")
        self.answer, self.reads, self.closed_at = threading.Event(), 0, 0.0

    def _read(self, timeout: float) -> None:
        self.reads += 1
        self.answer.wait(30)

    def _close(self) -> None:
        self.closed_at = time.perf_counter()


def test_a_source_is_not_closed_while_a_read_of_it_hangs() -> None:
    box = Mailbox(multiprocessing.get_context("spawn"), 64)
    source = HangingSource()
    thread = SourceThread("source", source.open(), State(), box, lambda _: (8, 8))
    thread.start()
    until(lambda: source.reads)
    start = time.perf_counter()
    thread.close()
    assert time.perf_counter() - start < 5
    assert not source.closed_at
    source.answer.set()
    until(lambda: not thread.is_alive())
    thread.close()
    assert source.closed_at
    box.close()
