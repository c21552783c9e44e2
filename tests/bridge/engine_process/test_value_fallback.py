"""The value fallback: its steps after engines that end as they begin."""

from __future__ import annotations

from bridge.engine_process.model_fallback import MAX_DEATHS
from bridge.engine_process.value_fallback import ValueFallback
from engine.shared.snapshot import Snapshot

BEGUN = Snapshot({"/prompt": "begun", "/steps": 3})
GOOD = Snapshot({"/prompt": "good", "/steps": 3, "/master": 0.5})
NOW = Snapshot({"/prompt": "now", "/steps": 3, "/model": "other", "/master": 0.25})


def test_the_steps_back_go_from_the_last_changes_to_everything() -> None:
    fallback = ValueFallback()
    fallback.record_begin(BEGUN)
    fallback.record_success(GOOD)
    for _ in range(MAX_DEATHS - 1):
        fallback.record_death()
    assert fallback.retreats(NOW) == [], "not enough deaths"
    fallback.record_death()
    steps = [dict(step.values) for step in fallback.retreats(NOW)]
    assert steps == [
        {"/prompt": "good"},
        {"/model": "pocket"},
        {"/prompt": "begun"},
        {"/prompt": Snapshot()["/prompt"], "/steps": Snapshot()["/steps"]},
        {"/model": "pocket"},
    ]
    first, second = [str(step) for step in fallback.retreats(NOW)][:2]
    assert "/prompt 'now'" in first
    assert second == "model other does not work; back to pocket"


def test_a_step_that_was_taken_is_not_taken_again() -> None:
    fallback = ValueFallback()
    for _ in range(MAX_DEATHS):
        fallback.record_death()
    values, steps = dict(NOW), 0
    while retreats := fallback.retreats(values):
        values |= retreats[0].values
        steps += 1
        assert steps < 9
    assert values == {**NOW, "/prompt": Snapshot()["/prompt"], "/steps": Snapshot()["/steps"], "/model": "pocket"}


def test_an_engine_that_begins_clears_the_values_of_suspicion() -> None:
    fallback = ValueFallback()
    for _ in range(MAX_DEATHS):
        fallback.record_death()
    fallback.record_begin(BEGUN)
    assert fallback.retreats(NOW) == []


def test_a_first_model_that_cannot_begin_gives_way_to_the_built_in_one_and_no_value_does() -> None:
    fallback = ValueFallback()
    for _ in range(MAX_DEATHS):
        fallback.record_failure()
    assert [dict(step.values) for step in fallback.retreats(NOW)] == [{"/model": "pocket"}]
    fallback.record_success(GOOD)
    assert fallback.retreats(NOW) == []
