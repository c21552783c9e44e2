"""State: numbered changes, snapshots, and rejections at a limited log rate."""

from __future__ import annotations

import logging

import pytest

from bridge.control.state import State
from engine.shared.snapshot import Snapshot


def test_only_a_different_value_increments_the_number() -> None:
    state = State()
    before = state.number
    assert state.set("/strength", [0.25], "test")
    assert state.number == before + 1
    assert state.set("/strength", [0.25], "test")
    assert state.number == before + 1
    assert state.snapshot().real("/strength") == 0.25


def test_a_snapshot_is_built_once_for_each_change_and_is_immutable() -> None:
    state = State()
    before, seen = state.snapshot(), state.effective()
    assert state.snapshot() is before
    assert state.effective() is seen
    state.put({"/strength": 0.25})
    assert (before.real("/strength"), state.snapshot().real("/strength"), state.effective().real("/strength")) == (
        0.5,
        0.25,
        0.25,
    )
    state.overlay({"/strength": 0.75})
    assert (state.snapshot().real("/strength"), state.effective().real("/strength")) == (0.25, 0.75)
    state.overlay({})
    assert state.effective().real("/strength") == 0.25
    state.put({}, mixture=(({"/seed": 2}, 1.0),))
    assert state.snapshot().mixture == state.effective().mixture == (({"/seed": 2}, 1.0),)


def test_listeners_are_called_after_changes() -> None:
    state, numbers = State(), []
    state.on_change(lambda: numbers.append(state.number))
    state.set("/seed", [5], "test")
    state.set("/seed", ["nonsense"], "test")
    assert len(numbers) == 1


def test_no_argument_toggles_a_switch_and_fires_a_trigger() -> None:
    state = State()
    state.set("/freeze", [], "test")
    assert state.snapshot().flag("/freeze")
    state.set("/freeze", [], "test")
    assert not state.snapshot().flag("/freeze")
    seed = state.snapshot().whole("/seed")
    state.set("/seed/random", [], "test")
    assert state.snapshot().whole("/seed") != seed
    chosen = state.snapshot().whole("/seed")
    state.set("/seed/random", [0], "test")
    assert state.snapshot().whole("/seed") == chosen, "releasing a button does not trigger"


def test_reset_keeps_parameters_that_need_a_reload() -> None:
    state = State({"/size": "128x128", "/prompt": "x", "/strength": 0.9})
    state.set("/reset", [], "test")
    snapshot = state.snapshot()
    assert snapshot.text("/size") == "128x128"
    assert snapshot.text("/prompt") == Snapshot().text("/prompt")
    assert snapshot.real("/strength") == 0.5


def test_rejections_are_counted_and_logged_at_a_limited_rate(caplog: pytest.LogCaptureFixture) -> None:
    state = State()
    before = dict(state.snapshot())
    with caplog.at_level(logging.WARNING):
        for _ in range(500):
            state.set("/strength", ["loud"], "test")
    assert state.rejected == 500
    assert 1 <= len(caplog.records) <= 5
    assert "strength" in state.last_rejection
    assert dict(state.snapshot()) == before


def test_a_follower_that_raises_keeps_neither_the_others_nor_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    state, seen = State(), list[str]()

    def fail(*_: object) -> None:
        raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")

    state.on_change(fail)
    state.on_change(lambda: seen.append("listener"))
    state.on_set(fail)
    state.on_set(lambda _names, by: seen.append(by))
    for seed in range(3, 30):
        assert state.set("/seed", [seed], "desk")
    state.overlay({"/seed": 3})
    assert seen.count("desk") == 27
    assert seen.count("listener") == 28
    assert sum("follower" in record.message for record in caplog.records) <= 5, "at a limited rate"


@pytest.mark.parametrize("name", ["/preset", "/panic"])
def test_a_handler_that_raises_rejects_its_message(name: str) -> None:
    state = State()

    def fail(*_: object) -> None:
        raise OSError("the disk\nis full")

    state.on_command("/preset", fail)
    state.on_trigger("/panic", fail)
    assert not state.set(name, ["1"], "desk")
    assert state.rejected == 1
    assert state.last_rejection == f"{name} failed: the disk"


def test_a_rejection_is_one_line_of_valid_unicode(caplog: pytest.LogCaptureFixture) -> None:
    state = State()
    state.reject("no \ud83d\nsecond line \x1b[2J" + "\u0301" * 5000, "desk \udcff")
    assert state.last_rejection.startswith(r"no \ud83d\nsecond line \x1b[2J")
    assert len(state.last_rejection) < 2000
    (record,) = caplog.records
    assert record.message.encode().startswith(rb"desk \udcff: no ")
