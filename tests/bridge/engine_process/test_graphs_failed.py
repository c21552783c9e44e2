"""An engine that cannot survive a failed CUDA graph is replaced by one without graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from bridge.control.state import State
from bridge.engine_process import standby, supervisor
from bridge.engine_process.supervisor import Supervisor
from engine.shared.messages import EngineStatus, GraphsFailed, Ready
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from tests.bridge.engine_process.fake_engine import Engine
from tests.waiting import until

STATUS = EngineStatus("pocket", "cuda:0", "float16", "512x512", {"/model": "pocket"}, frames=9)


class GraphEngine(Engine):
    """An engine that knows its options, and whether it was started as a standby."""

    started: ClassVar[list[GraphEngine]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.options, self.is_standby, self.has_begun = arguments[2], arguments[4], False
        GraphEngine.started.append(self)

    def begin(self, _snapshot: Snapshot) -> None:
        self.has_begun = True
        self.report(Ready(STATUS))


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Return a supervisor that starts a standby at once."""
    monkeypatch.setattr(supervisor, "EngineProcess", GraphEngine)
    monkeypatch.setattr(standby, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(GraphEngine, "started", [])
    result = Supervisor(State({"/model": "pocket"}), EngineOptions("cuda", accelerate="auto"))
    result.start()
    yield result
    result.close()


def begin(number: int, accelerator: str) -> GraphEngine:
    """Wait until engines with graphs have begun ``number`` times and report the state of the last one."""
    until(lambda: sum(engine.has_begun for engine in GraphEngine.started) == number, 10, f"engine {number}")
    engine = [engine for engine in GraphEngine.started if engine.has_begun][-1]
    engine.report(replace(STATUS, accelerator=accelerator))
    return engine


def test_the_next_engine_and_its_standby_record_no_graphs(running: Supervisor) -> None:
    until(lambda: len(GraphEngine.started) == 2, 5, "an engine and its standby")
    first, waiting = GraphEngine.started
    assert first.options.cuda_graphs
    assert waiting.is_standby
    first.report(GraphsFailed("no CUDA graphs of the denoiser"))
    until(lambda: not waiting.alive, 5, "the standby to end: it has the options before")
    first.die()
    until(lambda: any(engine.has_begun for engine in GraphEngine.started[2:]), 10, "the next engine")
    later = GraphEngine.started[2:]
    assert not any(engine.options.cuda_graphs for engine in later)
    assert not waiting.has_begun
    assert {engine.options.accelerate for engine in later} == {"auto"}, "all else stays"


@pytest.mark.parametrize(("state", "deaths"), [("recording denoiser", 1), ("graphs", 2)])
def test_graphs_that_end_engines_are_dropped(state: str, deaths: int, running: Supervisor) -> None:
    for number in range(1, deaths + 1):
        engine = begin(number, state)
        until(lambda: running.status is not None and running.status.accelerator == state, 5, "its report")
        assert engine.options.cuda_graphs
        engine.die()
    assert not begin(deaths + 1, "eager").options.cuda_graphs


def test_an_engine_that_ends_without_graphs_says_nothing_about_them(running: Supervisor) -> None:
    for number in range(1, 4):
        engine = begin(number, "compiled")
        until(lambda: running.status is not None and running.status.accelerator == "compiled", 5, "its report")
        engine.die()
    assert begin(4, "graphs").options.cuda_graphs
