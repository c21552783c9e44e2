"""Noise that walks: unit length, through the seeds, at the rate that is set."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.noise_walk import NoiseWalk
from engine.diffusion.schedule import noise
from engine.models import load
from engine.shared.snapshot import Snapshot


@pytest.fixture(scope="module")
def tables() -> Coefficients:
    return Coefficients(load("pocket", torch.device("cpu"), torch.float32), 64, 64)


def test_nothing_travels_at_rate_0(tables: Coefficients) -> None:
    assert NoiseWalk(tables).noises(Snapshot(), 5.0, 2) is None


@pytest.mark.parametrize(("unit", "rate", "seconds"), [("seconds", 2.0, 0.5), ("beats", 1.0, 0.5)])
def test_the_walk_reaches_the_next_seed_in_its_time(
    tables: Coefficients, unit: str, rate: float, seconds: float
) -> None:
    travel = NoiseWalk(tables)
    values = Snapshot({"/seed": 40, "/seed/travel": rate, "/seed/travel/unit": unit, "/tempo": 120.0})
    walked = [travel.noises(values, 10.0 + seconds * k / 4, 2) for k in range(9)]
    shape = (8, 8, 8)
    for k, found in enumerate(walked):
        assert found is not None
        assert found.std().item() == pytest.approx(1.0, abs=0.1), "always like noise"
        if k % 4 == 0:
            assert torch.allclose(found, noise((40 + k // 4, 0), 0.0, 2, shape), atol=1e-4)
    steps = [(b - a).abs().mean().item() for a, b in pairwise(walked) if a is not None and b is not None]
    assert max(steps) < 0.7, "no jump"
    stopped = Snapshot({"/seed": 40, "/seed/travel": 0.0})
    rested = travel.noises(stopped, 20.0, 2)
    assert rested is not None
    assert walked[-1] is not None
    assert torch.allclose(rested, walked[-1], atol=1e-5), "it stays where it has come to"
    assert travel.noises(Snapshot({"/seed": 41}), 21.0, 2) is None, "another seed starts anew"
