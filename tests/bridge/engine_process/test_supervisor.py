"""The supervisor restarts engines that die, after growing pauses, and goes back to a model that works."""

from __future__ import annotations

import errno
import itertools
import os
import time
from dataclasses import replace

import pytest

from bridge.control.state import State
from bridge.engine_process import supervisor
from bridge.engine_process.model_fallback import MAX_DEATHS
from bridge.engine_process.supervisor import RESTART_SECONDS, Supervisor
from engine.shared.messages import (
    EngineError,
    RegionMap,
    Reloaded,
    Reverted,
    WatchRegions,
)
from engine.shared.options import EngineOptions
from tests.bridge.engine_process.fake_engine import STATUS, Engine, behave_only_for, engine_of
from tests.waiting import until


def test_a_change_is_sent_at_once(supervised: tuple[State, Supervisor]) -> None:
    state, started = supervised
    until(started.ready.is_set, 5, "a running engine")
    engine = engine_of(started)
    for strength in (0.1, 0.2, 0.3):
        begun = time.perf_counter()
        state.put({"/strength": strength})
        until(lambda s=strength: any(snapshot["/strength"] == s for snapshot in engine.snapshots()), 5, "the change")
        assert time.perf_counter() - begun < supervisor.WATCH_SECONDS, "it does not wait for the next poll"


def test_an_engine_is_asked_for_the_regions_once_and_so_is_the_next_one(supervised: tuple[State, Supervisor]) -> None:
    _, started = supervised
    region_map = RegionMap(1, 2, b"\xff\0", 0.5)

    def requests(engine: Engine) -> list[bool]:
        engine.snapshots()
        return [message.is_on for message in engine.received if isinstance(message, WatchRegions)]

    until(started.ready.is_set, 5, "a running engine")
    first = engine_of(started)
    first.report(region_map)
    first.report(replace(STATUS, frames=10))
    until(lambda: started.status and started.status.frames == 10, 5, "the report after the map")
    assert started.region_map is None, "nobody asked"
    assert requests(first) == []
    started.watch_regions(True)
    until(lambda: requests(first) == [True], 5, "the request")
    first.report(region_map)
    until(lambda: started.region_map == region_map, 5, "the map")
    first.report(RegionMap())
    until(lambda: started.region_map is None, 5, "a picture that is computed whole")
    first.report(region_map)
    until(lambda: started.region_map == region_map, 5, "the map")
    assert requests(first) == [True], "once"
    first.die()
    until(lambda: started.region_map is None, 5, "the end of what the engine computed")
    until(started.ready.is_set, 5, "the next engine")
    second = engine_of(started)
    until(lambda: requests(second) == [True], 5, "the request")
    started.watch_regions(False)
    until(lambda: requests(second) == [True, False], 5, "its end")


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
