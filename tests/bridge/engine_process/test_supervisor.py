"""What the supervisor does with engines that die: another, ever later; and another model, where one kills them all."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from bridge.control.state import State
from bridge.engine_process import process as life
from bridge.engine_process import supervisor
from bridge.engine_process.supervisor import DEATHS, FIRST_PAUSE, Supervisor
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from tests.waiting import until

RUNNING = {"/model": "pocket", "/size": "512x512"}


class Pipe:
    """The bridge's end of a pipe to an engine that was never there."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def poll(self, _timeout: float = 0.0) -> bool:
        if not self.told:
            time.sleep(0.005)
        return bool(self.told)

    def recv(self) -> tuple[str, Any]:
        return self.told.pop(0)

    def send(self, _message: object) -> None:
        pass


class Engine:
    """Behaves as ``way`` says when it is begun with a snapshot: runs, dies, refuses, or falls silent."""

    way: Callable[[Snapshot], str] = staticmethod(lambda _snapshot: "runs")
    accelerator = "eager"
    begun: ClassVar[list[tuple[float, str]]] = []

    def __init__(self, *_: object) -> None:
        self.pipe, self.alive, self.waits = Pipe(), True, True
        self.process = type("Process", (), {"exitcode": -9, "pid": 1})()

    def begin(self, snapshot: Snapshot) -> None:
        way = Engine.way(snapshot)
        Engine.begun.append((time.monotonic(), snapshot.text("/model")))
        running = {name: snapshot[name] for name in supervisor.MODEL}
        status = {
            "model": snapshot["/model"],
            "device": "cpu",
            "dtype": "bfloat16",
            "size": "512x512",
            "running": running,
            "frames": 9,
        }
        status["accelerator"] = Engine.accelerator
        if way == "refuses":
            self.pipe.told.append(("refused", f"{snapshot['/model']} cannot be read"))
        elif way in ("runs", "silent"):
            self.pipe.told.append(("ready", status))
        self.alive = way in ("runs", "silent")

    def end(self, _patience: float) -> None:
        self.alive = False


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[State, Supervisor]]:
    monkeypatch.setattr(supervisor, "Life", Engine)
    monkeypatch.setattr(supervisor, "SETTLED", 0.1)
    monkeypatch.setattr(Engine, "begun", [])
    state = State({"/model": "pocket", "/prompt": "kept"})
    made = Supervisor(state, EngineOptions("cpu"), spare=False)
    made.start()
    yield state, made
    made.close()


def dies_with(name: str, how: str = "dies") -> Callable[[Snapshot], str]:
    return staticmethod(lambda snapshot: how if snapshot.text("/model") == name else "runs")  # type: ignore[return-value]


def test_a_model_that_kills_every_engine_gives_way_to_the_one_before(
    watched: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, made = watched
    until(lambda: made._good, 5, "a good life")
    monkeypatch.setattr(Engine, "way", dies_with("killer"))
    state.put({"/model": "killer"})
    assert made._life is not None
    made._life.alive = False
    until(lambda: state.snapshot().text("/model") == "pocket", 10, "the model before")
    until(made.ready.is_set, 5, "a running engine")
    assert [name for _, name in Engine.begun] == ["pocket", *["killer"] * (DEATHS - 1), "pocket"]
    assert "killer does not work; back to pocket" in made.last_error
    assert state.snapshot().text("/prompt") == "kept"


def test_restarts_come_ever_later(watched: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = watched
    until(lambda: made._good, 5, "a good life")
    monkeypatch.setattr(Engine, "way", staticmethod(lambda _snapshot: "dies"))
    assert made._life is not None
    made._life.alive = False
    until(lambda: len(Engine.begun) == 6, 20, "restarts")
    moments = [moment for moment, _ in Engine.begun[1:]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    for number, pause in enumerate(pauses):
        assert pause >= FIRST_PAUSE * 2 ** (number + 1)


def test_a_model_that_is_gone_from_the_disk_gives_way_to_the_built_in_one(
    watched: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, made = watched
    until(lambda: made._good, 5, "a good life")
    state.put({"/model": "folder"})
    assert made._life is not None
    made._life.pipe.told.append(("status", made.status | {"running": made.status["running"] | {"/model": "folder"}}))  # type: ignore[attr-defined]
    until(lambda: made._good.get("/model") == "folder", 5, "another good model")
    monkeypatch.setattr(Engine, "way", dies_with("folder", "refuses"))
    made._life.alive = False
    until(lambda: state.snapshot().text("/model") == "pocket", 10, "the built-in model")
    until(made.ready.is_set, 5, "a running engine")


def test_an_engine_that_says_nothing_is_replaced(
    watched: tuple[State, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = watched
    monkeypatch.setattr(life, "HUNG", 0.5)
    until(lambda: len(Engine.begun) == 2, 10, "another engine")
    assert "hangs" in made.last_error


def test_how_long_an_engine_may_be_silent() -> None:
    assert life.hang_timeout({}, 0) == life.HUNG
    assert life.hang_timeout({"tick_ms": 40.0, "snapshot": 3}, 3) == life.HUNG
    assert life.hang_timeout({"tick_ms": 4000.0, "snapshot": 3}, 3) == life.TICKS * 4.0
    assert life.hang_timeout({"tick_ms": 4000.0, "snapshot": 3}, 4) == life.TICKS_CHANGED * 4.0, (
        "more steps may make the next one heavier"
    )
    assert life.hang_timeout({"loading": True}, 0) == life.HUNG_LOADING


class Reserve(Engine):
    """Where it is a reserve it dies before it is ready, while ``dies``."""

    dies = True
    made: ClassVar[list[float]] = []

    def __init__(self, *arguments: object, reserve: bool = False) -> None:
        super().__init__(*arguments)
        if reserve:
            Reserve.made.append(time.monotonic())
            self.alive = self.waits = not Reserve.dies


def reserving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that run, with reserves that begin soon."""
    monkeypatch.setattr(supervisor, "Life", Reserve)
    monkeypatch.setattr(supervisor, "SPARE", 0.1)
    monkeypatch.setattr(Engine, "way", staticmethod(lambda _snapshot: "runs"))
    monkeypatch.setattr(Reserve, "made", [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_what_is_made_ready_beside_a_stream_steps_back_and_nothing_after_it() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    seen: list[int] = []
    before = nice()
    life.stepping_back(lambda: seen.append(nice()))
    assert seen == [before + life.NICE]
    assert nice() == before
    with pytest.raises(ImportError):
        life.stepping_back(lambda: importlib.import_module("engine.nowhere"))


def test_a_reserve_waits_while_the_engine_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    reserving(monkeypatch)
    monkeypatch.setattr(Reserve, "dies", False)
    monkeypatch.setattr(Engine, "accelerator", "compiling denoiser")
    made = Supervisor(State({"/model": "pocket"}), EngineOptions("cpu"))
    made.start()
    try:
        until(made.ready.is_set)
        time.sleep(0.5)
        assert not Reserve.made
        made._life.pipe.told.append(("status", made.status | {"accelerator": "compiled"}))  # type: ignore[union-attr]
        until(lambda: len(Reserve.made) == 1)
    finally:
        made.close()


def test_a_reserve_that_dies_again_and_again_comes_ever_later_until_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    reserving(monkeypatch)
    monkeypatch.setattr(Reserve, "dies", True)
    made = Supervisor(State({"/model": "pocket"}), EngineOptions("cpu"))
    made.start()
    try:
        until(lambda: len(Reserve.made) == 4)
        pauses = [two - one for one, two in itertools.pairwise(Reserve.made)]
        assert pauses[0] >= 0.1
        assert pauses[2] > 1.5 * pauses[1] > 2 * pauses[0]
        Reserve.dies = False
        until(lambda: made._spare is not None and made._spare.alive)
        until(lambda: made._spare_pause == supervisor.SPARE)
    finally:
        made.close()
