"""The supervisor restarts engines that die, after growing pauses, and goes back to a model that works."""

from __future__ import annotations

import errno
import importlib
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import pytest

from bridge.control.state import State
from bridge.engine_process import process as engine_process
from bridge.engine_process import standby, supervisor
from bridge.engine_process.engine_link import EngineLink
from bridge.engine_process.model_fallback import MAX_DEATHS
from bridge.engine_process.supervisor import RESTART_SECONDS, Supervisor
from bridge.stress.small_pipe import shrink_pipe
from engine.shared.messages import (
    EngineError,
    EngineStatus,
    FromEngine,
    ModelRejected,
    Ready,
    Received,
    Reloaded,
    Reverted,
)
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.shared.table import RELOAD_PARAMETERS
from tests.waiting import until

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
        Engine.begun.append((time.monotonic(), snapshot.model.model))
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


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[State, Supervisor]]:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    monkeypatch.setattr(supervisor, "SUCCESS_SECONDS", 0.1)
    monkeypatch.setattr(Engine, "begun", [])
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "run"))
    state = State({"/model": "pocket", "/prompt": "unchanged"})
    started = Supervisor(state, EngineOptions("cpu"), standby=False)
    started.start()
    yield state, started
    started.close()


def engine_of(started: Supervisor) -> Engine:
    assert isinstance(started.process, Engine)
    return started.process


def behave_only_for(model: str, behaviour: str) -> Callable[[Snapshot], str]:
    return staticmethod(lambda snapshot: behaviour if snapshot.model.model == model else "run")  # type: ignore[return-value]


def test_a_change_is_sent_at_once(supervised: tuple[State, Supervisor]) -> None:
    state, started = supervised
    until(started.ready.is_set, 5, "a running engine")
    engine = engine_of(started)
    for strength in (0.1, 0.2, 0.3):
        begun = time.monotonic()
        state.put({"/strength": strength})
        until(lambda s=strength: any(snapshot["/strength"] == s for snapshot in engine.snapshots()), 5, "the change")
        assert time.monotonic() - begun < supervisor.WATCH_SECONDS, "it does not wait for the next poll"


def test_a_model_that_ends_every_engine_is_replaced_by_the_last_good_one(
    supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, started = supervised
    until(lambda: started.fallback.last_good, 5, "an engine that runs well")
    monkeypatch.setattr(Engine, "behaviour", behave_only_for("killer", "die"))
    state.put({"/model": "killer"})
    engine_of(started).die()
    until(lambda: state.snapshot().model.model == "pocket", 10, "the last good model")
    until(started.ready.is_set, 5, "a running engine")
    assert [name for _, name in Engine.begun] == ["pocket", *["killer"] * (MAX_DEATHS - 1), "pocket"]
    assert "killer does not work; back to pocket" in started.last_error
    assert state.snapshot()["/prompt"] == "unchanged"


def test_restarts_back_off(supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, started = supervised
    until(lambda: started.fallback.last_good, 5, "an engine that runs well")
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "die"))
    engine_of(started).die()
    until(lambda: len(Engine.begun) == 6, 20, "restarts")
    moments = [moment for moment, _ in Engine.begun[1:]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    for number, pause in enumerate(pauses):
        assert pause >= RESTART_SECONDS * 2 ** (number + 1)


def test_a_model_that_can_no_longer_be_read_is_replaced_by_the_built_in_one(
    supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, started = supervised
    until(lambda: started.fallback.last_good, 5, "an engine that runs well")
    state.put({"/model": "folder"})
    assert started.status is not None
    running = dict(started.status.running) | {"/model": "folder"}
    engine_of(started).report(replace(started.status, running=running))
    until(lambda: started.fallback.last_good.get("/model") == "folder", 5, "another good model")
    monkeypatch.setattr(Engine, "behaviour", behave_only_for("folder", "reject"))
    engine_of(started).die()
    until(lambda: state.snapshot().model.model == "pocket", 10, "the built-in model")
    until(started.ready.is_set, 5, "a running engine")


def test_the_first_model_that_is_rejected_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "reject"))
    started = Supervisor(State({"/model": "nowhere"}), EngineOptions("cpu"), standby=False)
    started.start()
    until(lambda: started.rejected, 5, "the rejection, although the process has ended")
    assert started.rejected == "nowhere cannot be read"
    started.close()


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


def test_the_engine_reports_and_reverts(supervised: tuple[State, Supervisor]) -> None:
    state, started = supervised
    until(started.ready.is_set, 5, "a running engine")
    engine = engine_of(started)
    state.put({"/model": "huge", "/steps": 4})
    engine.report(Reverted("out of memory", {"/model": "pocket", "/steps": 4}, {"/model": "huge", "/steps": 4}))
    until(lambda: state.snapshot().model.model == "pocket", 5, "the values that run")
    assert state.snapshot()["/steps"] == 4
    assert started.last_error == "out of memory"
    state.put({"/model": "other"})
    engine.report(Reverted("too late", {"/model": "pocket"}, {"/model": "huge"}))
    engine.report(EngineError("a frame failed"))
    engine.report(Reloaded("model other"))
    until(lambda: started.last_error == "a frame failed", 5, "the error")
    assert state.snapshot().model.model == "other", "a later request stays"
    assert started.errors == 3


def test_the_hang_timeout_grows_with_the_tick() -> None:
    timeout = engine_process.hang_timeout
    slow = replace(STATUS, tick_ms=4000.0, snapshot=3)
    assert timeout(None, 0) == engine_process.HANG_SECONDS
    assert timeout(replace(STATUS, tick_ms=40.0, snapshot=3), 3) == engine_process.HANG_SECONDS
    assert timeout(slow, 3) == engine_process.HANG_TICKS * 4.0
    assert timeout(slow, 4) == engine_process.HANG_TICKS_AFTER_CHANGE * 4.0, "more steps may make ticks slower"
    assert timeout(replace(STATUS, loading=True), 0) == engine_process.HANG_SECONDS_LOADING


class StandbyEngine(Engine):
    """An engine that dies before it is ready where it starts as a standby, while ``dies``."""

    dies = True
    started: ClassVar[list[float]] = []

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        if arguments[-1]:
            StandbyEngine.started.append(time.monotonic())
            self.alive = self.is_waiting = not StandbyEngine.dies


def start_with_standby(monkeypatch: pytest.MonkeyPatch, dies: bool) -> Supervisor:
    """Start a supervisor of engines that run, with standbys that start soon."""
    monkeypatch.setattr(supervisor, "EngineProcess", StandbyEngine)
    monkeypatch.setattr(standby, "DELAY_SECONDS", 0.1)
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "run"))
    monkeypatch.setattr(StandbyEngine, "started", [])
    monkeypatch.setattr(StandbyEngine, "dies", dies)
    started = Supervisor(State({"/model": "pocket"}), EngineOptions("cpu"))
    started.start()
    return started


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_preparation_runs_at_low_priority_and_nothing_after_it() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    seen: list[int] = []
    before = nice()
    engine_process.run_with_low_priority(lambda: seen.append(nice()))
    assert seen == [before + engine_process.PREPARE_NICE]
    assert nice() == before
    with pytest.raises(ImportError):
        engine_process.run_with_low_priority(lambda: importlib.import_module("engine.nowhere"))


def test_no_standby_starts_while_the_engine_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "accelerator", "compiling denoiser")
    started = start_with_standby(monkeypatch, dies=False)
    try:
        until(started.ready.is_set)
        time.sleep(0.5)
        assert not StandbyEngine.started
        assert started.status is not None
        engine_of(started).report(replace(started.status, accelerator="compiled"))
        until(lambda: len(StandbyEngine.started) == 1)
        until(lambda: started.standby.pid is not None)
    finally:
        started.close()


def test_a_standby_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_with_standby(monkeypatch, dies=False)
    try:
        until(lambda: started.standby.pid is not None)
        first = engine_of(started)
        first.die()
        until(lambda: started.starts == 2 and started.ready.is_set(), 5, "the standby")
        assert len(StandbyEngine.started) == 1, "the standby took over, not a new process"
        assert engine_of(started) is not first
    finally:
        started.close()


def test_standbys_that_die_early_back_off_until_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_with_standby(monkeypatch, dies=True)
    try:
        until(lambda: len(StandbyEngine.started) == 4)
        pauses = [later - earlier for earlier, later in itertools.pairwise(StandbyEngine.started)]
        assert pauses[0] >= 0.1
        assert pauses[2] > 1.5 * pauses[1] > 2 * pauses[0]
        StandbyEngine.dies = False
        until(lambda: started.standby.alive)
        until(lambda: started.standby.delay == standby.DELAY_SECONDS)
    finally:
        started.close()


def test_an_engine_that_cannot_be_started_counts_against_no_model(
    supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, started = supervised
    until(lambda: started.fallback.last_good, 5, "an engine that runs well")
    failures = 0

    def start(*arguments: object) -> Engine:
        nonlocal failures
        if failures < 2 * MAX_DEATHS:
            failures += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Engine(*arguments)

    monkeypatch.setattr(supervisor, "EngineProcess", start)
    monkeypatch.setattr(supervisor, "START_RETRY_SECONDS", 0.05)
    state.put({"/model": "another"})
    engine_of(started).die()
    until(lambda: failures == 2 * MAX_DEATHS and started.ready.is_set(), 10, "a running engine")
    assert state.snapshot().model.model == "another"
    assert started.fallback.deaths <= 1
    assert os.strerror(errno.EMFILE) in started.last_error


def test_a_standby_that_cannot_be_started_is_tried_again_later() -> None:
    failures = 0

    def start() -> Engine:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Engine()

    waiting = standby.Standby(start)  # type: ignore[arg-type]
    now, reports = 1000.0, []
    for _ in range(200):
        now += 0.1
        reports.append(waiting.maintain(now, 0.0, False))
    assert waiting.alive
    assert len([report for report in reports if report]) == failures == 2


def test_an_exception_of_the_supervisor_does_not_end_a_running_engine(
    supervised: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, started = supervised
    until(started.ready.is_set, 5, "a running engine")
    engine = engine_of(started)

    def fail(*_: object) -> str:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(started.standby, "maintain", fail)
    state.put({"/strength": 0.125})
    until(lambda: any(snapshot["/strength"] == 0.125 for snapshot in engine.snapshots()), 5, "the change")
    assert started.process is engine
    assert started.starts == 1
