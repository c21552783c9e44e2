"""A supervisor of engines that behave as a test says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.control.state import State
from bridge.engine_process import supervisor
from bridge.engine_process.supervisor import Supervisor
from engine.shared.options import EngineOptions
from tests.bridge.engine_process.fake_engine import Engine


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
