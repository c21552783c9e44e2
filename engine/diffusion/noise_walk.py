"""Noise that walks from seed to seed instead of standing still, at a rate in beats or seconds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.schedule import slerp
from engine.shared.snapshot import Snapshot


class NoiseWalk:
    """Where the walk is: it goes on from there when the rate changes, and starts anew at the first seed when that changes."""

    def __init__(self, tables: Coefficients) -> None:
        self._tables = tables
        self._seed, self._way = 0, 0.0
        self._at: float | None = None

    def noises(self, snapshot: Snapshot, now: float, steps: int) -> Tensor | None:
        """The noises (steps, C, h, w) of a frame captured ``now``, in seconds; None where nothing travels."""
        rate, seed = snapshot.real("/seed/travel"), snapshot.whole("/seed")
        if snapshot.text("/seed/travel/unit") == "beats":
            rate *= snapshot.real("/tempo") / 60.0
        if seed != self._seed:
            self._seed, self._way = seed, 0.0
        passed = 0.0 if self._at is None else min(max(now - self._at, 0.0), 1.0)
        self._at = now
        self._way += rate * passed
        if rate == 0.0 and self._way == 0.0:
            return None
        whole = math.floor(self._way)
        # Neighbouring seeds are unrelated noises, so a walk over whole numbers is as good as any.
        one, two = (self._tables.noises(((seed + k) % 2**31, 0), 0.0, steps) for k in (whole, whole + 1))
        mix = self._way - whole
        return one if mix == 0.0 else slerp(one, two, torch.tensor(mix, device=one.device), dims=(1, 2, 3))
