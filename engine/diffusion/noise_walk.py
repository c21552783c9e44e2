"""Noise that walks from seed to seed, at a rate in beats or seconds."""

from __future__ import annotations

import math

import torch
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
        rate = settings.seeds_per_second
        if settings.seed != self._seed:
            self._seed, self._position = settings.seed, 0.0
        elapsed = 0.0 if self._last_time is None else min(max(now - self._last_time, 0.0), MAX_STEP_SECONDS)
        self._last_time = now
        self._position += rate * elapsed
        if rate == 0.0 and self._position == 0.0:
            return None
        whole = math.floor(self._position)
        # Neighbouring seeds are unrelated noises, so a walk over whole numbers is as good as any.
        one, two = (self._coefficients.noises(((settings.seed + k) % 2**31, 0), 0.0, steps) for k in (whole, whole + 1))
        mix = self._position - whole
        return one if mix == 0.0 else slerp(one, two, torch.tensor(mix, device=one.device), dims=(1, 2, 3))
