"""Timesteps and coefficients against the schedulers of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from engine.diffusion.schedule import clean_coefficients, noise, plan_steps, slerp, spaced_timesteps
from engine.models import ModelError
from engine.models.noise_schedule import read_noise_schedule
from engine.shared.parameter import InvalidValue


def config(scheduler: object) -> dict[str, object]:
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_alphas_are_those_of_the_scheduler(beta_schedule: str) -> None:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule)
    schedule = read_noise_schedule(config(scheduler))
    assert schedule.alphas is not None
    assert torch.allclose(schedule.alphas.float(), scheduler.alphas_cumprod, rtol=1e-4)
    assert not schedule.consistency


def test_the_boundary_is_that_of_the_lcm_scheduler() -> None:
    scheduler = LCMScheduler()
    schedule = read_noise_schedule(config(scheduler))
    for t in (1, 19, 259, 999):
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert schedule.boundary(t) == pytest.approx((float(c_skip), float(c_out)), rel=1e-5)
    assert read_noise_schedule(config(DDIMScheduler())).boundary(19) == (0.0, 1.0)


def test_spaced_timesteps_fall_from_the_one_that_strength_reaches() -> None:
    model = read_noise_schedule(config(LCMScheduler()))
    assert spaced_timesteps(model, 1, 1.0) == [999]
    assert spaced_timesteps(model, 2, 1.0) == [999, 499]
    assert spaced_timesteps(model, 4, 1.0) == [999, 749, 499, 249]
    assert spaced_timesteps(model, 1, 0.5) == [499]
    for steps in range(1, 9):
        for strength in (0.0, 0.01, 0.5, 1.0):
            timesteps = spaced_timesteps(model, steps, strength)
            assert len(set(timesteps)) == steps
            assert timesteps == sorted(timesteps, reverse=True)
            assert all(0 <= t <= 999 for t in timesteps)


def test_a_flow_is_shifted_by_its_schedulers_formula() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = read_noise_schedule(config(scheduler))
    sigmas = [1.0, 0.75, 0.5, 0.25]
    expected = [1000 * 3.0 * s / (1 + 2.0 * s) for s in sigmas]
    assert spaced_timesteps(schedule, 4, 1.0) == pytest.approx(expected)
    step = plan_steps(schedule, 1, 1.0, "600")[0]
    assert (step.a, step.b) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_the_clean_latent_is_recovered(prediction: str) -> None:
    torch.manual_seed(0)
    z, eps = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    a, b = (0.4, 0.6) if prediction == "flow" else (0.8, 0.6)
    output = {"epsilon": eps, "v": a * eps - b * z, "flow": eps - z}[prediction]
    of_x, of_output = clean_coefficients(prediction, a, b)
    assert torch.allclose(of_x * (a * z + b * eps) + of_output * output, z)


def test_an_explicit_schedule_beyond_the_model_is_rejected() -> None:
    with pytest.raises(InvalidValue, match="999"):
        plan_steps(read_noise_schedule(config(LCMScheduler())), 1, 1.0, "1000")


def test_an_unknown_prediction_type_is_rejected() -> None:
    with pytest.raises(ModelError, match="sample"):
        read_noise_schedule(config(DDIMScheduler(prediction_type="sample")))


def test_noise_is_one_draw_of_the_generator() -> None:
    expected = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(42))
    assert torch.equal(noise((42, 1), 0.0, 3, (4, 8, 8)), expected)
    assert torch.equal(noise((1, 42), 1.0, 3, (4, 8, 8)), expected)


def test_mixed_noise_stays_noise() -> None:
    mixed = noise((1, 2), 0.5, 4, (8, 32, 32))
    assert mixed.std() == pytest.approx(1.0, abs=0.02)


def test_slerp_follows_the_circle() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    middle = slerp(one, two, 0.5)
    assert torch.allclose(middle, torch.tensor([[1.0, 1.0]]) / 2**0.5 * 1.5)
    assert torch.allclose(slerp(one, two, 0.0), one)
    assert torch.allclose(slerp(one, two, 1.0), two, atol=1e-6)
    assert torch.allclose(slerp(one, one, 0.3), one, atol=1e-4)
