"""Noise that walks from seed to seed, at a rate in beats or seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import numpy as np
from torch import Tensor

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.schedule import slerp
from engine.shared.settings import NoiseWalkSettings

#: Longest time between two frames that the walk makes up for, in seconds.
MAX_STEP_SECONDS = 1.0


class NoiseWalk:
    """The position of the walk, in seeds from the first one. It survives a change of rate; another seed resets it."""

    def __init__(self, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self._seed, self._position = 0, 0.0
        self._last_time: float | None = None

    def noises(self, settings: NoiseWalkSettings, now: float, steps: int) -> Tensor | None:
        """Return the noises (steps, C, h, w) of a frame captured ``now``, in seconds; None where nothing walks."""
        self._position = self._position_at(settings, now)
        self._seed, self._last_time = settings.seed, now
        if settings.seeds_per_second == 0.0 and self._position == 0.0:
            return None
        one, two = (self._coefficients.noises((seed, 0), 0.0, steps) for seed in _seeds(settings, self._position))
        mix = float(np.float32(self._position - math.floor(self._position)))  # as exact as the noises are
        return one if mix == 0.0 else slerp(one, two, mix, dims=(1, 2, 3))

    def values(self, settings: NoiseWalkSettings, now: float, steps: int) -> dict[Hashable, Callable[[], Tensor]]:
        """Return what ``noises`` would read of its coefficients."""
        position = self._position_at(settings, now)
        if settings.seeds_per_second == 0.0 and position == 0.0:
            return {}
        looks = [((seed, 0, 0.0), 1.0) for seed in _seeds(settings, position)]
        return self._coefficients.noise_values(looks, steps)

    def _position_at(self, settings: NoiseWalkSettings, now: float) -> float:
        elapsed = 0.0 if self._last_time is None else min(max(now - self._last_time, 0.0), MAX_STEP_SECONDS)
        start = self._position if settings.seed == self._seed else 0.0
        return start + settings.seeds_per_second * elapsed


def _seeds(settings: NoiseWalkSettings, position: float) -> tuple[int, int]:
    """Return the two seeds between which the walk is at ``position``."""
    # Neighbouring seeds are unrelated noises, so a walk over whole numbers is as good as any.
    first = settings.seed + math.floor(position)
    return first % 2**31, (first + 1) % 2**31
