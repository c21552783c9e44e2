"""Steps at real sizes: the layers that are built, what is timed, and the speedup that follows from it."""

from __future__ import annotations

import pytest
import torch

from engine.bench.regions import large
from engine.bench.regions.large import (
    PAPER,
    STEPS,
    StepType,
    check,
    count_layers,
    describe_computed,
    describe_steps,
    list_steps,
    open_step,
    run_all_steps,
    time_alternately,
    time_steps,
)
from engine.bench.regions.large_models import LARGE_MODELS
from engine.models import Model

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "millions"), [("SD3 medium", 2028), ("Lumina-Next", 1750)])
def test_a_model_has_the_real_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        transformer, fewer = (LARGE_MODELS[name].build(layers)["transformer"] for layers in (24, 23))
    weights, without_one = (sum(weight.numel() for weight in t.parameters()) for t in (transformer, fewer))
    assert weights / 1e6 == pytest.approx(millions, rel=0.03)
    assert 0 < weights - without_one < weights / 20


def test_the_layers_follow_the_time_of_one() -> None:
    assert count_layers(0.9, 3.0, 2) == 3
    assert count_layers(0.01, 3.0, 2) == 24
    assert (count_layers(9.0, 3.0, 2), count_layers(9.0, 3.0, 1)) == (2, 1)


def test_text_tokens_are_left_out_where_there_are_some() -> None:
    assert len(list_steps(has_text_tokens=True)) == 8
    assert len(list_steps(has_text_tokens=False)) == 5
    assert list_steps(True)[0] == StepType(None)


@pytest.mark.parametrize(
    ("step_type", "tokens", "is_regional"),
    [
        (StepType(None), 16, False),
        (StepType(1.0), 16, True),
        (StepType(0.25), 4, True),
        (StepType(0.125, with_text=False), 2, True),
    ],
)
def test_a_step_computes_its_share_each_time(model: Model, step_type: StepType, tokens: int, is_regional: bool) -> None:
    regions = model.architecture.compiled_regions
    assert regions is not None
    calls: list[tuple[object, ...]] = []
    module = regions.module
    hook = module.register_forward_pre_hook(lambda _module, arguments: calls.append(arguments))
    step = open_step(model, 64, step_type)
    calls.clear()
    with torch.inference_mode():
        assert step().shape == step().shape == (1, 8, 8, 8)
    hook.remove()
    assert len(calls) == 2 * is_regional
    for *_, active, _, with_text in calls:
        assert (16 if active is None else active.shape[-1]) == tokens  # type: ignore[attr-defined]
        assert with_text == step_type.with_text


def test_runs_alternate_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], list[str]()

    def run(name: str, seconds: float) -> None:
        now[0] += seconds * (10 if len(order) < 2 else 1)
        order.append(name)

    monkeypatch.setattr(large.time, "perf_counter", lambda: now[0])
    times = time_alternately({"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0)}, 2, CPU)
    assert order == ["a", "b"] * 3
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_steps_of_a_small_model_are_timed(model: Model) -> None:
    step_types = [StepType(None), StepType(0.5)]
    seconds = time_steps(model, 32, step_types, 1)
    assert list(seconds) == step_types
    assert min(seconds.values()) > 0


def test_all_steps_run_at_the_papers_setting(model: Model) -> None:
    regions = model.architecture.compiled_regions
    assert regions is not None
    counts: list[int] = []
    hook = regions.module.register_forward_pre_hook(
        lambda _module, arguments: counts.append(16 if arguments[-3] is None else arguments[-3].shape[-1])
    )
    assert run_all_steps(model, 64, {}) > 0
    assert not counts, "without regions"
    assert run_all_steps(model, 64, PAPER) > 0
    hook.remove()
    assert counts == [16, *[2] * 8, 16, *[2] * 7, 16, *[2] * 7], "steps 3 to 27: cache filled at 3, 12 and 20"
    assert len(counts) + 3 == STEPS


def test_the_speedup_follows_from_single_steps() -> None:
    seconds = {StepType(None): 1.0, StepType(1.0): 1.1, StepType(0.25): 0.41, StepType(0.125): 0.2}
    rows = list(describe_steps({"layers": 3}, seconds))
    assert [row["ratio"] for row in rows] == [1.0, 1.1, 0.41, 0.2]
    assert [row["ratio_to_share_1"] for row in rows] == [0.909, 1.0, 0.373, 0.182]
    assert [row.get("holds") for row in rows] == [None, None, False, True]
    row = describe_computed({"layers": 3}, seconds)
    expected = 3 * 1.0 + 3 * 1.1 + 22 * 0.2
    assert row["regions_s"] == round(expected, 2)
    assert (row["speedup"], row["holds"]) == (round(28 / expected, 2), True)
    assert check(2.1, at_least=2.2) == {"at_least": 2.2, "holds": False}
    assert check(2.1) == {}
