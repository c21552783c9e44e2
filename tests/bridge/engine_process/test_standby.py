"""A standby takes over; one that dies or cannot be started is tried again later."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import sys
import time
from dataclasses import replace
from typing import ClassVar

import pytest

from bridge.control.state import State
from bridge.engine_process import process as engine_process
from bridge.engine_process import standby, supervisor
from bridge.engine_process.supervisor import Supervisor
from engine.shared.options import EngineOptions
from tests.bridge.engine_process.fake_engine import Engine, engine_of
from tests.waiting import until


class StandbyEngine(Engine):
    """An engine that dies before it is ready where it starts as a standby, while ``dies``."""

    dies = True
    started: ClassVar[list[float]] = []

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        if arguments[-1]:
            StandbyEngine.started.append(time.perf_counter())
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
