"""Values that an engine cannot begin with, or cannot change to: they are dropped, all others stay. Real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.control.state import State
from bridge.engine_process.model_fallback import MAX_DEATHS
from bridge.engine_process.supervisor import Supervisor
from engine.shared.fault_parameter import CHANGE_RAISES, FAULT_PARAMETER, NO_FAULT, START_EXITS, START_RAISES
from engine.shared.options import EngineOptions
from engine.shared.table import declare
from tests.waiting import until

FAULT = FAULT_PARAMETER.name
VALUES = {"/size": "64x64", "/steps": 1, "/prompt": "a red barn", "/strength": 0.25}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL")


@contextmanager
def engine(values: Mapping[str, Any], hooks: Path | None = None) -> Iterator[tuple[State, Supervisor]]:
    """Start an engine process with VALUES and ``values``, whose faults can be injected."""
    declare([FAULT_PARAMETER])
    state = State(VALUES | dict(values))
    supervisor = Supervisor(state, EngineOptions("cpu", hooks=str(hooks or ""), fault_injection=True), standby=False)
    supervisor.start()
    try:
        yield state, supervisor
    finally:
        supervisor.close()
        declare([])


def kill(supervisor: Supervisor) -> None:
    """Kill the engine and wait for the start of another."""
    starts, pid = supervisor.starts, supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: supervisor.starts > starts, 20, "another engine")


def has_other_values(state: State, *besides: str) -> bool:
    snapshot = state.snapshot()
    return all(snapshot[name] == value for name, value in VALUES.items() if name not in besides)


def test_a_value_that_raises_at_the_first_start_is_dropped_and_the_rest_begins() -> None:
    with engine({FAULT: START_RAISES}) as (state, supervisor):
        until(supervisor.ready.is_set, 60, "the engine")
        assert supervisor.starts == 1, "the same process began without it"
        assert state.snapshot()[FAULT] == NO_FAULT
        assert has_other_values(state)
        assert (state.rejected, supervisor.errors) == (1, 0), "reported once"
        assert FAULT in state.last_rejection
        assert START_RAISES in state.last_rejection


def test_a_value_that_a_running_engine_took_does_not_keep_the_next_one_from_beginning() -> None:
    with engine({}) as (state, supervisor):
        until(supervisor.ready.is_set, 60, "the engine")
        state.put({FAULT: START_RAISES, "/schedule": "1000", "/seed": 7})
        until(lambda: supervisor.status is not None and supervisor.status.snapshot == state.number, 20, "the change")
        kill(supervisor)
        until(supervisor.ready.is_set, 60, "the next engine")
        assert supervisor.starts == 2
        assert (state.snapshot()[FAULT], state.snapshot()["/schedule"], state.snapshot()["/seed"]) == (NO_FAULT, "", 7)
        assert has_other_values(state)
        assert state.rejected == 1
        assert "/schedule" in state.last_rejection


def test_values_that_end_the_process_at_its_start_are_taken_back_to_those_it_began_with() -> None:
    with engine({}) as (state, supervisor):
        until(lambda: supervisor.value_fallback.last_begun, 60, "an engine that has begun")
        state.put({FAULT: START_EXITS})
        kill(supervisor)
        until(lambda: supervisor.starts == 1 + MAX_DEATHS + 1 and supervisor.ready.is_set(), 90, "an engine that runs")
        assert state.snapshot()[FAULT] == NO_FAULT
        assert has_other_values(state), "only what changed is taken back"
        assert FAULT in supervisor.last_error


def test_values_that_end_every_process_from_the_first_on_give_way_to_the_defaults() -> None:
    with engine({FAULT: START_EXITS}) as (state, supervisor):
        until(supervisor.ready.is_set, 90, "an engine that runs")
        assert supervisor.starts == MAX_DEATHS + 1
        assert state.snapshot()[FAULT] == NO_FAULT
        assert state.snapshot()["/size"] == "64x64", "the model and its size are not at fault"


def test_a_change_that_raises_is_taken_back_and_the_others_stay() -> None:
    with engine({}) as (state, supervisor):
        until(supervisor.ready.is_set, 60, "the engine")
        pid = supervisor.pid
        state.put({FAULT: CHANGE_RAISES, "/strength": 0.75, "/prompt": "a blue barn"})
        until(lambda: state.snapshot()[FAULT] == NO_FAULT, 20, "the fault's end")
        until(lambda: supervisor.status is not None and supervisor.status.snapshot == state.number, 20, "the rest")
        assert (state.snapshot()["/strength"], state.snapshot()["/prompt"]) == (0.75, "a blue barn")
        assert (state.rejected, supervisor.errors, supervisor.pid, supervisor.starts) == (1, 0, pid, 1)


def test_a_value_that_cannot_be_sent_is_dropped() -> None:
    with engine({"/negative": threading.Lock()}) as (state, supervisor):
        until(supervisor.ready.is_set, 60, "the engine")
        assert (state.snapshot()["/negative"], supervisor.starts, state.rejected) == ("", 1, 1)
        state.put({"/negative": threading.Lock(), "/seed": 5})  # type: ignore[dict-item]
        until(lambda: state.snapshot()["/negative"] == "", 10, "the rejection")
        until(lambda: supervisor.status is not None and supervisor.status.snapshot == state.number, 20, "the rest")
        assert (state.snapshot()["/seed"], supervisor.starts) == (5, 1)
        assert has_other_values(state)


def test_a_hook_file_that_exits_does_not_end_the_engine(tmp_path: Path) -> None:
    (tmp_path / "quits.py").write_text("raise SystemExit(3)\n")
    with engine({}, tmp_path) as (_, supervisor):
        until(supervisor.ready.is_set, 60, "the engine")
        until(lambda: "quits" in supervisor.last_error, 10, "the reason")
        assert supervisor.starts == 1
