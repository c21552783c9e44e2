"""The training loop: learning rate, weight averages, stopping rules, clipping and the log line."""

from __future__ import annotations

import logging
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from engine.training import loop
from engine.training.loop import (
    ExponentialMovingAverage,
    Limit,
    LinearDecay,
    TrainingLoop,
    delayed_decay,
    warmed_up_decay,
)


@pytest.mark.parametrize(
    ("step", "progress", "factor"),
    [
        (0, 0.0, 1 / 200),  # the first of 200 warm-up steps
        (99, 0.0, 0.5),
        (199, 0.1, 1.0),
        (500, 0.3, 1.0),  # 1 - 0.3 = 0.7: the decay begins
        (500, 0.65, 0.5 + 0.02),
        (500, 1.0, 0.02),
        (99, 0.65, 0.5 * 0.52),
    ],
)
def test_the_learning_rate_warms_up_and_decays(step: int, progress: float, factor: float) -> None:
    assert LinearDecay(8e-4, warmup_steps=200, decay_share=0.7)(step, progress) == pytest.approx(8e-4 * factor)


def test_the_average_is_the_weighted_sum_of_all_values() -> None:
    torch.manual_seed(1)
    parameter = Parameter(torch.randn(3))
    values = [parameter.detach().clone()]
    average = ExponentialMovingAverage([parameter], warmed_up_decay(0.9))
    for step in range(120):
        parameter.data = torch.randn(3)
        values.append(parameter.detach().clone())
        average.update(step)
    # Value k of step k - 1 weighs (1 - decay of its step) times all later decays; the start weighs all decays.
    decays = [min(0.9, (1 + step) / (10 + step)) for step in range(120)]
    assert decays[80] == 0.9, "from step 80 on the decay is constant"
    weights = [np.prod(decays), *((1 - decays[k]) * np.prod(decays[k + 1 :]) for k in range(120))]
    assert sum(weights) == pytest.approx(1)
    expected = np.sum([w * v.double().numpy() for w, v in zip(weights, values, strict=True)], 0)
    assert average.average[0].numpy() == pytest.approx(expected, abs=1e-5)
    average.copy_to_parameters()
    assert torch.equal(parameter.detach(), average.average[0])


def test_a_delayed_average_equals_the_parameters_until_its_first_step() -> None:
    parameter = Parameter(torch.zeros(1))
    average = ExponentialMovingAverage([parameter], delayed_decay(0.75, first_step=2))
    history = []
    for step in range(5):
        parameter.data = torch.tensor([float(2**step)])
        average.update(step)
        history.append(average.average[0].item())
    assert history == [1, 2, 4, 0.75 * 4 + 0.25 * 8, 0.75 * 5 + 0.25 * 16]


def test_an_average_can_be_written_into_another_module() -> None:
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    average = ExponentialMovingAverage(source.parameters(), lambda step: 0.0, average=target.parameters())
    average.update(0)
    assert torch.equal(source.weight, target.weight)


def run_loop(limit: Limit, **options: object) -> tuple[int, list[float], Parameter]:
    """Minimise x² by gradient descent from 1 and return the steps, the learning rates and x."""
    x = Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([x], lr=0.0)
    rates: list[float] = []

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        rates.append(optimiser.param_groups[0]["lr"])
        loss = x.square().sum()
        return loss, {"loss": loss}

    settings = {"learning_rate": lambda step, progress: 0.1 + progress, "averages": []} | options
    steps = TrainingLoop("test", optimiser, [x], **settings).run(limit, compute_loss)
    return steps, rates, x


def test_a_limit_in_steps_runs_exactly_those() -> None:
    steps, rates, _ = run_loop(Limit(steps=4))
    assert steps == 4
    assert rates == pytest.approx([0.1, 0.35, 0.6, 0.85]), "progress is the share of steps that are done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clock by one that advances by six seconds at each reading."""
    seconds = count(1000, 6)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))


@pytest.mark.usefixtures("clock")
def test_a_limit_in_minutes_ends_by_the_clock() -> None:
    steps, rates, _ = run_loop(Limit(minutes=0.5))
    assert steps == 4, "readings after 6, 12, 18 and 24 s begin a step, the one after 30 s ends the training"
    assert rates == pytest.approx([0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("options", [{}, {"minutes": 1, "steps": 1}, {"minutes": 0}, {"steps": 0}, {"steps": -1}])
def test_a_limit_is_one_positive_length(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a training"):
        Limit(**options)


def test_gradients_are_clipped_to_a_norm_of_one() -> None:
    _, _, x = run_loop(Limit(steps=1), learning_rate=lambda step, progress: 0.25)
    assert x.item() == pytest.approx(0.75), "the gradient of x² at 1 is 2"


def test_the_first_average_becomes_the_weights() -> None:
    x = Parameter(torch.ones(1))
    constant = ExponentialMovingAverage([x], lambda step: 1.0)
    optimiser = torch.optim.SGD([x], lr=0.0)
    training = TrainingLoop("test", optimiser, [x], lambda step, progress: 0.1, [constant])
    training.run(Limit(steps=3), lambda: (x.square().sum(), {}))
    assert x.item() == 1.0, "an average that never moves restores the start"


def test_the_log_line_has_the_mean_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run_loop(Limit(steps=4), learning_rate=lambda step, progress: 0.5, log_every=2)
    # x is 1, 0.5, 0, 0: losses 1, 0.25, 0, whose running means are 1, 0.625, 0.4167
    assert caplog.messages == ["test step 0, 0 %: loss 1.0000", "test step 2, 50 %: loss 0.4167"]
