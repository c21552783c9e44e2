"""An engine that hangs is replaced, also while values move and its pipe is full."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from dataclasses import replace

import pytest

from bridge.control.state import State
from bridge.engine_process import process as engine_process
from bridge.engine_process import supervisor
from bridge.engine_process.supervisor import Supervisor
from bridge.stress.small_pipe import shrink_pipe
from engine.shared.options import EngineOptions
from tests.bridge.engine_process.fake_engine import STATUS, Engine, engine_of
from tests.waiting import until


def test_a_silent_engine_is_replaced(supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, started = supervised
    monkeypatch.setattr(engine_process, "HANG_SECONDS", 0.5)
    until(lambda: len(Engine.begun) == 2, 10, "another engine")
    assert "hangs" in started.last_error


class SmallPipeEngine(Engine):
    """An engine behind a pipe as small as that of Windows and macOS."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        shrink_pipe(self.link.pipe)


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes are small as they are")
@pytest.mark.parametrize("rate", [0, 2, 20, 60, 1000])
def test_a_hung_engine_is_replaced_while_values_move(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", SmallPipeEngine)
    monkeypatch.setattr(Engine, "begun", [])
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "run"))
    monkeypatch.setattr(engine_process, "HANG_SECONDS", 0.6)
    state = State({"/prompt": "p" * 3000})  # two snapshots fill the pipe
    started = Supervisor(state, EngineOptions("cpu"), standby=False)
    started.start()
    stop = threading.Event()

    def move() -> None:
        for step in itertools.count():
            if stop.wait(1 / rate):
                return
            state.put({"/strength": step % 100 / 100})

    fader = threading.Thread(target=move)
    try:
        until(started.ready.is_set, 5, "a running engine")
        hung = engine_of(started)
        if rate:
            fader.start()
        assert until(lambda: len(Engine.begun) == 3, 5, "two further engines") < 2 * (0.6 + 0.6)
        stop.set()
        if rate:
            fader.join()
        assert "hangs" in started.last_error
        assert not hung.alive
        until(started.ready.is_set, 5, "the last engine")
        last = engine_of(started)
        state.put({"/strength": 0.875})
        until(lambda: last.snapshots() and last.snapshots()[-1]["/strength"] == 0.875, 0.5, "the newest value")
    finally:
        stop.set()
        started.close()


def test_the_newest_value_is_sent_when_the_one_before_was_received(supervised: tuple[State, Supervisor]) -> None:
    state, started = supervised
    until(started.ready.is_set, 5, "a running engine")
    engine = engine_of(started)
    state.put({"/strength": 0.01})
    until(lambda: not engine.can_send, 5, "the first change")
    for step in range(2, 50):
        state.put({"/strength": step / 100})
    time.sleep(3 * supervisor.WATCH_SECONDS)
    assert [snapshot["/strength"] for snapshot in engine.snapshots()] == [0.01]
    until(lambda: len(engine.snapshots()) == 2, 5, "the newest values")
    assert engine.snapshots()[-1]["/strength"] == 0.49


def test_the_hang_timeout_grows_with_the_tick() -> None:
    timeout = engine_process.hang_timeout
    slow = replace(STATUS, tick_ms=4000.0, snapshot=3)
    assert timeout(None, 0) == engine_process.HANG_SECONDS
    assert timeout(replace(STATUS, tick_ms=40.0, snapshot=3), 3) == engine_process.HANG_SECONDS
    assert timeout(slow, 3) == engine_process.HANG_TICKS * 4.0
    assert timeout(slow, 4) == engine_process.HANG_TICKS_AFTER_CHANGE * 4.0, "more steps may make ticks slower"
    assert timeout(replace(STATUS, loading=True), 0) == engine_process.HANG_SECONDS_LOADING
