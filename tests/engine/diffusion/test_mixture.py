"""Crossfades in the engine: prompts are mixed by their embeddings, seeds by their noises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from engine.diffusion.coefficients import Coefficients
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.schedule import slerp
from engine.diffusion.stream import Stream
from engine.models import Condition, Model, load
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import MIXED, Snapshot
from engine.shared.table import TABLE

SIZE = 64


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", torch.device("cpu"), torch.float32)


def look(**values: Value) -> dict[str, Value]:
    return {name: TABLE[name].default for name in MIXED} | {
        "/" + name.replace("_", "/"): value for name, value in values.items()
    }


ICE, FIRE, SMOKE = look(prompt="ice", seed=3), look(prompt="fire", seed=9), look(prompt="smoke", seed=11)


def test_conditions_are_mixed_spherically_and_the_ends_are_the_looks_themselves() -> None:
    vectors = {text: torch.randn(1, 4, 8) for text in ("ice", "fire", "smoke", "", "red")}
    conditioner = Conditioner(lambda text: Condition(vectors[text]))

    def tokens(*looks: tuple[dict[str, Value], float]) -> torch.Tensor:
        conditioner.update(Snapshot(mixture=looks).looks, encode_now=True)
        assert conditioner.condition is not None
        return conditioner.condition.tokens

    assert torch.equal(tokens((ICE, 1.0)), vectors["ice"])
    assert torch.allclose(tokens((ICE, 0.75), (FIRE, 0.25)), slerp(vectors["ice"], vectors["fire"], 0.25), atol=1e-6)
    both = slerp(vectors["ice"], vectors["fire"], 0.5)
    assert torch.allclose(
        tokens((ICE, 0.25), (FIRE, 0.25), (SMOKE, 0.5)), slerp(both, vectors["smoke"], 0.5), atol=1e-6
    )
    assert torch.equal(tokens((ICE, 1.0), (FIRE, 0.0)), vectors["ice"])
    assert torch.allclose(tokens((ICE, 0.0), (FIRE, 1.0)), vectors["fire"], atol=1e-6)
    blended = look(prompt="ice", prompt_2="red", prompt_1_weight=1.0)
    assert torch.allclose(
        tokens((blended, 0.5), (FIRE, 0.5)),
        slerp((vectors["ice"] + vectors["red"]) / 2, vectors["fire"], 0.5),
        atol=1e-5,
    )
    conditioner.update(Snapshot(mixture=((ICE | {"/negative": "red"}, 0.5), (FIRE, 0.5))).looks, encode_now=True)
    assert conditioner.negative is not None
    assert torch.allclose(conditioner.negative.tokens, slerp(vectors["red"], vectors[""], 0.5), atol=1e-6)
    conditioner.close()


def mixed_noises(tables: Coefficients, mixture: tuple[tuple[dict[str, Value], float], ...], steps: int) -> torch.Tensor:
    return tables.mixed_noises([(look.seeds, share) for look, share in Snapshot(mixture=mixture).looks], steps)


def test_noises_are_mixed_on_the_sphere(pocket: Model) -> None:
    tables = Coefficients(pocket, SIZE, SIZE)
    one, two = tables.noises((3, 2), 0.0, 4), tables.noises((9, 2), 0.0, 4)
    assert mixed_noises(tables, ((ICE, 1.0),), 4) is one
    half = mixed_noises(tables, ((ICE, 0.5), (FIRE, 0.5)), 4)
    assert torch.allclose(half, slerp(one, two, 0.5, dims=(1, 2, 3)))
    assert abs(float(half.std()) - 1) < 0.05, "unit variance, which a plain mean has not"
    assert float(((one + two) / 2).std()) < 0.8
    assert mixed_noises(tables, ((ICE, 0.5), (look(prompt="fire", seed=3), 0.5)), 4) is one, "equal seeds are not mixed"


def test_a_crossfade_goes_smoothly_from_one_look_to_the_other(pocket: Model) -> None:
    picture = Frame(np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8))
    stream = Stream(pocket, SIZE, SIZE)

    def render(snapshot: Snapshot) -> np.ndarray:
        stream.apply(snapshot)
        stream.settle()
        (frame,) = stream.step([picture]) or []
        return frame.pixels[..., :3].astype(float)

    base = {"/steps": 1, "/strength": 0.9}
    first, last = render(Snapshot(base | ICE)), render(Snapshot(base | FIRE))
    fade = [render(Snapshot(base, mixture=((ICE, 1 - i / 20), (FIRE, i / 20)))) for i in range(21)]
    assert np.abs(fade[0] - first).max() <= 1
    assert np.abs(fade[-1] - last).max() <= 1
    steps = [float(np.abs(a - b).mean()) for a, b in itertools.pairwise(fade)]
    distance = float(np.abs(first - last).mean())
    assert distance > 10
    assert max(steps) < distance / 4, "no step is a jump"
    stream.close()
