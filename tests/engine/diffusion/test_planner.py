"""The planner: steps and noises of a plan, when it is recomputed, and what an invalid schedule leaves."""

from __future__ import annotations

import math

import pytest
import torch

from engine.diffusion.planner import Planner
from engine.models import Model, load
from engine.shared.parameter import InvalidValue, Value
from engine.shared.snapshot import Snapshot

WIDTH, HEIGHT = 64, 96


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", torch.device("cpu"), torch.float32)


@pytest.fixture
def planner(pocket: Model) -> Planner:
    return Planner(pocket, WIDTH, HEIGHT)


def update(planner: Planner, **values: Value) -> None:
    snapshot = Snapshot({"/" + name.replace("_", "/"): value for name, value in values.items()})
    planner.update(snapshot.diffusion, snapshot.looks)


def walk(planner: Planner, seconds: float, **values: Value) -> None:
    snapshot = Snapshot({"/" + name.replace("_", "/"): value for name, value in values.items()})
    planner.walk(snapshot.diffusion.noise_walk, seconds)


def timesteps(planner: Planner) -> list[float]:
    return [step.t for step in planner.plan.steps]


def draw(pocket: Model, seed: int, steps: int) -> torch.Tensor:
    """Return the noises of a seed by their definition: one draw of a generator."""
    shape = (steps, pocket.latent_channels, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_plan_has_the_steps_and_the_noises_of_its_settings(pocket: Model, planner: Planner) -> None:
    update(planner, steps=2, strength=0.7, seed=5)
    assert timesteps(planner) == [699, 349]
    assert torch.equal(planner.plan.noises, draw(pocket, 5, 2))
    assert pocket.noise_schedule.alphas is not None
    alpha = float(pocket.noise_schedule.alphas[699])
    assert planner.plan.steps[0].a == pytest.approx(math.sqrt(alpha))
    assert torch.allclose(planner.plan.initial_noise, math.sqrt(1 - alpha) * draw(pocket, 5, 2)[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": 1, "strength": 0.5}, [499]),
        ({"steps": 4, "strength": 1.0}, [999, 749, 499, 249]),
        ({"steps": 2, "strength": 0.3, "mode": "text"}, [999, 499]),
        ({"steps": 1, "schedule": "601 402 33"}, [601, 402, 33]),
    ],
)
def test_timesteps_follow_strength_mode_and_schedule(
    planner: Planner, values: dict[str, Value], expected: list[float]
) -> None:
    update(planner, **values)
    assert timesteps(planner) == expected
    assert len(planner.plan.noises) == len(expected)


def test_a_plan_stays_until_its_settings_change(planner: Planner) -> None:
    update(planner, steps=2, seed=5)
    plan = planner.plan
    update(planner, steps=2, seed=5, guidance=3.0, smoothing=0.5, prompt="fire")
    assert planner.plan is plan, "settings that it does not depend on"
    steps, noises = plan.steps, plan.noises.clone()
    for change in ({"steps": 3}, {"strength": 0.2}, {"eta": 0.5}, {"seed": 6}, {"seed_2": 9, "seed_mix": 0.5}):
        update(planner, **{"steps": 2, "seed": 5} | change)
        assert planner.plan is not plan, change
        update(planner, steps=2, seed=5)
    assert plan.steps == steps
    assert torch.equal(plan.noises, noises), "frames in flight keep their plan"


def test_an_invalid_schedule_keeps_the_steps_is_reported_once_and_the_noises_follow(
    pocket: Model, planner: Planner
) -> None:
    update(planner, steps=2, strength=1.0, seed=5)
    with pytest.raises(InvalidValue, match="1000"):
        update(planner, schedule="1000 500 10", seed=8)
    assert timesteps(planner) == [999, 499]
    assert torch.equal(planner.plan.noises, draw(pocket, 8, 2))
    update(planner, schedule="1000 500 10", seed=8)
    update(planner, schedule="500 10", seed=8)
    assert timesteps(planner) == [500, 10]


def test_a_walk_moves_the_noises_and_not_the_steps(pocket: Model, planner: Planner) -> None:
    update(planner, steps=2, seed=5)
    plan = planner.plan
    walk(planner, 10.0, seed=5)
    assert planner.plan is plan, "no walk at rate 0"
    values: dict[str, Value] = {"seed": 5, "seed_travel": 2.0, "seed_travel_unit": "seconds"}
    for seconds, seed in ((10.5, 6), (11.0, 7)):
        walk(planner, seconds, **values)
        assert planner.plan.steps is plan.steps
        assert torch.allclose(planner.plan.noises, draw(pocket, seed, 2), atol=1e-4)
