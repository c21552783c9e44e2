"""Conditions: blends of prompts, and that the frame loop never encodes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from engine.diffusion.conditioning import Conditioner, blend
from engine.models import Condition
from engine.shared.snapshot import Snapshot


def weighted_prompts(snapshot: Snapshot) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return snapshot.looks[0][0].weighted_prompts


def condition(*values: float) -> Condition:
    return Condition(torch.tensor([[values]]))


def test_linear_blend_is_the_weighted_mean() -> None:
    mixed = blend([condition(0.0, 4.0), condition(8.0, 0.0), condition(2.0, 2.0)], [1.0, 1.0, 2.0], "linear")
    assert torch.allclose(mixed.tokens, torch.tensor([[[3.0, 2.0]]]))


def test_spherical_blend_keeps_the_length() -> None:
    mixed = blend([condition(1.0, 0.0), condition(0.0, 1.0)], [1.0, 1.0], "spherical")
    assert mixed.tokens.norm() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(mixed.tokens[..., 0], mixed.tokens[..., 1])


def test_only_prompts_with_text_and_weight_count() -> None:
    assert weighted_prompts(Snapshot({"/prompt": "a"})) == (("a",), (1.0,))
    assert weighted_prompts(Snapshot({"/prompt": "a", "/prompt/3": "c", "/prompt/3/weight": 0.5})) == (
        ("a", "c"),
        (1.0, 0.5),
    )
    assert weighted_prompts(Snapshot({"/prompt": "a", "/prompt/1/weight": 0.0, "/prompt/2": "b"})) == (("b",), (1.0,))
    assert weighted_prompts(Snapshot({"/prompt": "a", "/prompt/1/weight": 0.0})) == (("a",), (1.0,))


def test_a_new_prompt_is_encoded_on_another_thread_and_only_once() -> None:
    gate, calls = threading.Event(), []

    def encode(text: str) -> Condition:
        calls.append((text, threading.current_thread().name))
        if text == "slow":
            gate.wait(10)
        return condition(float(len(text)))

    conditioner = Conditioner(encode)
    conditioner.update(Snapshot({"/prompt": "one"}).looks)
    first = conditioner.condition
    start = time.perf_counter()
    conditioner.update(Snapshot({"/prompt": "slow"}).looks)
    assert time.perf_counter() - start < 0.1
    assert conditioner.condition is first, "the old prompt stays until the new one is encoded"
    assert not conditioner.settled
    gate.set()
    limit = time.perf_counter() + 10
    while conditioner.condition is first and time.perf_counter() < limit:
        conditioner.update(Snapshot({"/prompt": "slow"}).looks)
    assert conditioner.condition is not first
    for text in ("one", "slow", "one"):
        conditioner.update(Snapshot({"/prompt": text}).looks)
    assert sorted(text for text, _ in calls) == ["", "one", "slow"]
    assert dict(calls)["slow"] == "prompts"
    conditioner.close()


def test_a_prompt_that_cannot_be_encoded_leaves_the_last_one() -> None:
    def encode(text: str) -> Condition:
        if text == "bad":
            raise RuntimeError("no memory")
        return condition(1.0)

    conditioner = Conditioner(encode)
    conditioner.update(Snapshot({"/prompt": "good"}).looks)
    conditioner.update(Snapshot({"/prompt": "bad"}).looks)
    limit = time.perf_counter() + 10
    while not conditioner.encoder.failed and time.perf_counter() < limit:
        time.sleep(0.005)
    assert conditioner.encoder.failed == 1
    assert conditioner.condition is not None
    assert conditioner.settled
    conditioner.close()
