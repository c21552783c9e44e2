"""The first start: a model that ends or is refused by every engine ends it; an engine that has begun never gives up."""

from __future__ import annotations

import pytest

from bridge.control.state import State
from bridge.engine_process import supervisor
from bridge.engine_process.model_fallback import MAX_DEATHS
from bridge.engine_process.supervisor import Supervisor
from engine.shared.options import EngineOptions
from tests.bridge.engine_process.fake_engine import Engine
from tests.waiting import until


def test_a_model_that_ends_every_first_engine_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "die"))
    monkeypatch.setattr(Engine, "begun", [])
    state = State({"/model": "deadly"})
    started = Supervisor(state, EngineOptions("cpu"), standby=False)
    started.start()
    until(lambda: started.rejected, 10, "the end")
    started.close()
    assert len(Engine.begun) == MAX_DEATHS
    assert "no engine begins with model deadly" in started.rejected
    assert "exit code -9" in started.rejected
    assert state.snapshot().model.model == "deadly", "nothing else is shown in its place"


def test_live_values_are_given_up_before_a_first_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    monkeypatch.setattr(
        Engine, "behaviour", staticmethod(lambda snapshot: "die" if snapshot["/prompt"] == "deadly" else "run")
    )
    state = State({"/model": "folder", "/prompt": "deadly"})
    started = Supervisor(state, EngineOptions("cpu"), standby=False)
    started.start()
    until(started.ready.is_set, 10, "an engine")
    started.close()
    assert (started.rejected, state.snapshot().model.model) == ("", "folder")


def test_an_engine_that_has_begun_once_is_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "run"))
    started = Supervisor(State({"/model": "pocket"}), EngineOptions("cpu"), standby=False)
    started.start()
    until(lambda: started.value_fallback.last_begun, 5, "an engine that has begun")
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: "die"))
    begun = len(Engine.begun)
    assert isinstance(started.process, Engine)
    started.process.die()
    until(lambda: len(Engine.begun) > begun + MAX_DEATHS, 20, "more engines")
    started.close()
    assert started.rejected == ""


def test_a_rejection_after_a_first_engine_that_died_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EngineProcess", Engine)
    ends = iter(["die", "reject"])
    monkeypatch.setattr(Engine, "behaviour", staticmethod(lambda _snapshot: next(ends)))
    started = Supervisor(State({"/model": "nowhere"}), EngineOptions("cpu"), standby=False)
    started.start()
    until(lambda: started.rejected, 5, "the rejection")
    started.close()
    assert started.rejected == "nowhere cannot be read"
