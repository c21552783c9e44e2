"""The wakeup of a thread that waits on connections: set without blocking, seen once."""

from __future__ import annotations

import multiprocessing

from bridge.engine_process.wakeup import Wakeup


def test_a_wakeup_never_blocks_and_is_seen_once() -> None:
    wakeup = Wakeup(multiprocessing.get_context("spawn"))
    for _ in range(100_000):
        wakeup.set()
    assert wakeup.reader.poll()
    wakeup.clear()
    assert not wakeup.reader.poll()
    wakeup.clear()
    wakeup.set()
    assert wakeup.reader.poll()
