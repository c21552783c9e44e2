"""The training loop: learning-rate schedule, gradient clipping, weight averages, stopping rule and log line.

A recipe supplies one function that draws a batch and returns its loss. That function enters ``precision.autocast``
around its networks, and computes the loss itself in float32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from engine.training.run_state import RunState, Stage

log = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0
#: Weight of the newest step in the logged means, once 50 steps have passed.
METRIC_WEIGHT = 0.02

#: (step from 0, share of the training that is done, 0..1) → learning rate, or decay of a weight average.
Schedule = Callable[[int, float], float]
#: Draws a batch and returns its loss, a scalar with a gradient, and the scalars to log.
LossFunction = Callable[[], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Limit:
    """The length of a training: ``minutes`` of wall clock, or ``steps`` for the same weights on every run.

    Raises ValueError unless exactly one of the two is set and positive.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("a training takes either minutes or steps")
        if (self.minutes or self.steps or 0) <= 0:
            raise ValueError(f"a training needs a positive length, got {self}")

    def progress(self, step: int, seconds: float) -> float:
        """Return the share that is done after ``step`` steps and ``seconds``; training ends at 1."""
        if self.steps is not None:
            return step / self.steps
        return seconds / (self.minutes * 60) if self.minutes else 1.0


@dataclass(frozen=True)
class LinearDecay:
    """A linear warm-up to ``peak``, and a linear fall over the last ``decay_share`` of the training.

    It ends at ``floor`` times the peak.
    """

    peak: float
    warmup_steps: int
    decay_share: float
    floor: float = 0.02

    def __call__(self, step: int, progress: float) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak * warmup * min(1.0, (1.0 - progress) / self.decay_share + self.floor)


class ExponentialMovingAverage:
    """A moving average of ``parameters``: average ← decay·average + (1 − decay)·parameter after each step.

    ``average`` holds the average's tensors, by default copies of the parameters.
    """

    def __init__(
        self, parameters: Iterable[Parameter], decay: Callable[[int], float], average: Iterable[Tensor] | None = None
    ) -> None:
        self.decay, self._parameters = decay, list(parameters)
        self.average = [p.detach().clone() for p in self._parameters] if average is None else list(average)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters as they are after ``step``, counted from 0."""
        torch._foreach_lerp_(self.average, [p.detach() for p in self._parameters], 1 - self.decay(step))

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Replace the parameters by their average."""
        for parameter, average in zip(self._parameters, self.average, strict=True):
            parameter.copy_(average)


def warmed_up_decay(decay: float) -> Callable[[int], float]:
    """Return the decay min(decay, (1 + step) / (10 + step)), so that the first steps do not weigh on the average."""
    return lambda step: min(decay, (1 + step) / (10 + step))


def delayed_decay(decay: float, first_step: int) -> Callable[[int], float]:
    """Return a decay of 0, which copies the parameters, through ``first_step``, and ``decay`` after it."""
    return lambda step: 0.0 if step <= first_step else decay


class TrainingLoop:
    """Steps of one optimiser until a limit is reached.

    Gradients of ``parameters`` are clipped to a norm of 1; others in the optimiser, such as auxiliary heads', are not.
    The first of ``averages`` becomes the parameters' values at the end.
    """

    def __init__(
        self,
        name: str,
        optimiser: torch.optim.Optimizer,
        parameters: Iterable[Parameter],
        learning_rate: Schedule,
        averages: Sequence[ExponentialMovingAverage],
        log_every: int = 100,
    ) -> None:
        self.name, self.optimiser, self.parameters = name, optimiser, list(parameters)
        self.learning_rate, self.averages, self.log_every = learning_rate, averages, log_every

    def run(
        self,
        limit: Limit,
        compute_loss: LossFunction,
        run_state: RunState | None = None,
        rng: np.random.Generator | None = None,
    ) -> int:
        """Train until ``limit``, log the mean metrics every ``log_every`` steps, and return the number of steps.

        A ``run_state`` lets a later run continue, with ``rng`` as the batches' generator.
        """
        means: dict[str, Tensor] = {}
        step, seconds = 0, 0.0
        averages = [tensor for average in self.averages for tensor in average.average]
        stage = Stage(self.name, self.optimiser, averages, rng or np.random.default_rng())
        if run_state is not None:
            step, seconds, means = run_state.restore(stage)
        start = time.perf_counter() - seconds
        while (progress := limit.progress(step, seconds := time.perf_counter() - start)) < 1:
            if run_state is not None:
                run_state.save_when_due(stage, step, seconds, means)
            for group in self.optimiser.param_groups:
                group["lr"] = self.learning_rate(step, progress)
            loss, metrics = compute_loss()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            self.optimiser.step()
            for average in self.averages:
                average.update(step)
            weight = max(METRIC_WEIGHT, 1 / (step + 1))
            for key, value in metrics.items():  # stay on the device, because reading them waits for it
                value = value.detach().float()
                means[key] = value if key not in means else torch.lerp(means[key], value, weight)
            if step % self.log_every == 0:
                text = ", ".join(f"{key} {value.item():.4f}" for key, value in means.items())
                log.info("%s step %d, %.0f %%: %s", self.name, step, progress * 100, text)
            step += 1
        if self.averages:
            self.averages[0].copy_to_parameters()
        return step
