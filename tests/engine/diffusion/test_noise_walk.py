"""The noise walk: unit variance, from seed to seed, at its rate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.noise_walk import NoiseWalk
from engine.diffusion.schedule import noise, slerp
from engine.models import load
from engine.shared.snapshot import Snapshot


@pytest.fixture(scope="module")
def coefficients() -> Coefficients:
    return Coefficients(load("pocket", torch.device("cpu"), torch.float32), 64, 64)


def test_there_is_no_walk_at_rate_0(coefficients: Coefficients) -> None:
    assert NoiseWalk(coefficients).noises(Snapshot().diffusion.noise_walk, 5.0, 2) is None


@pytest.mark.parametrize(("unit", "rate", "seconds"), [("seconds", 2.0, 0.5), ("beats", 1.0, 0.5)])
def test_the_walk_reaches_the_next_seed_in_its_time(
    coefficients: Coefficients, unit: str, rate: float, seconds: float
) -> None:
    walk = NoiseWalk(coefficients)
    values = Snapshot({"/seed": 40, "/seed/travel": rate, "/seed/travel/unit": unit, "/tempo": 120.0})
    walked = [walk.noises(values.diffusion.noise_walk, 10.0 + seconds * k / 4, 2) for k in range(9)]
    shape = (8, 8, 8)
    for k, noises in enumerate(walked):
        assert noises is not None
        assert noises.std().item() == pytest.approx(1.0, abs=0.1), "unit variance all the way"
        if k % 4 == 0:
            assert torch.allclose(noises, noise((40 + k // 4, 0), 0.0, 2, shape), atol=1e-4)
    steps = [(b - a).abs().mean().item() for a, b in pairwise(walked) if a is not None and b is not None]
    assert max(steps) < 0.7, "no jump"
    stopped = Snapshot({"/seed": 40, "/seed/travel": 0.0})
    stopped_at = walk.noises(stopped.diffusion.noise_walk, 20.0, 2)
    assert stopped_at is not None
    assert walked[-1] is not None
    assert torch.allclose(stopped_at, walked[-1], atol=1e-5), "it stays where it was stopped"
    assert walk.noises(Snapshot({"/seed": 41}).diffusion.noise_walk, 21.0, 2) is None, "another seed resets it"


def test_the_mix_is_a_number_and_the_noise_that_of_a_tensor(coefficients: Coefficients) -> None:
    walk = NoiseWalk(coefficients)
    settings = Snapshot({"/seed": 40, "/seed/travel": 0.7, "/seed/travel/unit": "seconds"}).diffusion.noise_walk
    walk.noises(settings, 0.0, 2)
    assert list(walk.values(settings, 0.9, 2)) == [("noises", (seed, 0), 0.0, 2) for seed in (40, 41)]
    walked = walk.noises(settings, 0.9, 2)
    one, two = (coefficients.noises((seed, 0), 0.0, 2) for seed in (40, 41))
    assert walked is not None
    assert torch.equal(walked, slerp(one, two, torch.tensor(0.7 * 0.9), dims=(1, 2, 3)))
