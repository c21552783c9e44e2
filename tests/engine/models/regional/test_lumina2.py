"""Lumina-Image 2.0 with a choice of tokens: what diffusers computes for those tokens, whatever the others' keys are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models.architectures.lumina import Lumina2
from engine.models.regional.base import TokenChoice
from tests.engine.models.regional import lumina_cases as cases
from tests.engine.models.regional.lumina_cases import Inputs, choose, draw_inputs, run, select, tokens_of
from tests.engine.transfers import META, Transfers

CHANNELS = 8
EMPTY_PROMPT = ((8, 8), (5, 0))


@pytest.fixture
def model() -> Lumina2:
    return cases.make(Lumina2, "lumina2")


def run_dense(model: Lumina2, inputs: Inputs) -> Tensor:
    """Return the tokens of what diffusers' model computes, with its own positions: time from 1 to 0, sign flipped."""
    model.denoiser.rope_embedder = getattr(model.denoiser.rope_embedder, "embedder", model.denoiser.rope_embedder)
    with torch.inference_mode():
        condition = inputs.condition
        output = model.denoiser(inputs.x, 1 - inputs.t / 1000, condition.tokens, condition.mask, return_dict=False)[0]
    return -tokens_of(output)


def computed_tokens(model: Lumina2, active: Tensor, lengths: tuple[int, ...], tokens: int, with_text: bool) -> Any:
    """Return which tokens of each attention are computed; diffusers puts a row's picture right behind its prompt."""
    picture = torch.zeros(len(lengths), tokens, dtype=torch.bool).scatter(1, active.flatten(1), True)
    joint = torch.zeros(len(lengths), max(lengths) + tokens, dtype=torch.bool)
    for row, length in enumerate(lengths):
        joint[row, :length] = with_text
        joint[row, length : length + tokens] = picture[row]
    refiners = {block.attn: picture for block in model.denoiser.noise_refiner}
    return refiners | {block.attn: joint for block in model.denoiser.layers}


@pytest.mark.parametrize(("size", "lengths"), [*cases.CASES, EMPTY_PROMPT])
def test_all_tokens_are_those_of_the_dense_model(
    model: Lumina2, size: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    inputs = draw_inputs(size, lengths, CHANNELS)
    tokens, cache = run(model, inputs)
    assert cache.shape == (len(lengths), 3, 2, 12 + size[0] * size[1] // 4, 24)
    with torch.inference_mode():
        dense = model.denoise(inputs.x, inputs.t, inputs.condition, 0.0)
    assert torch.allclose(tokens, run_dense(model, inputs), atol=1e-4)
    assert torch.allclose(tokens, tokens_of(dense), atol=1e-4)


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize(("size", "lengths"), [*cases.CASES, EMPTY_PROMPT])
def test_active_tokens_with_a_current_cache_are_those_of_the_dense_model(
    model: Lumina2, size: tuple[int, int], lengths: tuple[int, ...], with_text: bool
) -> None:
    inputs = draw_inputs(size, lengths, CHANNELS)
    active = choose(len(lengths), size[0] * size[1] // 4)
    _, cache = run(model, inputs)
    tokens, computed = run(model, inputs, TokenChoice(active, cache, with_text))
    assert torch.allclose(tokens, select(run_dense(model, inputs), active), atol=1e-4)
    text, picture = cache.split([12, cache.shape[3] - 12], 3)
    expected = torch.cat([text, select(picture, active, 3)] if with_text else [select(picture, active, 3)], 3)
    assert torch.allclose(computed, expected, atol=1e-4)


@pytest.mark.parametrize("with_text", [True, False])
def test_skipped_tokens_keep_their_earlier_keys_and_values(model: Lumina2, with_text: bool) -> None:
    size, lengths = (12, 16), (7, 12, 1)
    earlier, now = (draw_inputs(size, lengths, CHANNELS, seed) for seed in (1, 2))
    active = choose(3, 48)
    expected = cases.run_stale(
        computed_tokens(model, active, lengths, 48, with_text),
        lambda: run_dense(model, earlier),
        lambda: run_dense(model, now),
    )
    tokens, _ = run(model, now, TokenChoice(active, run(model, earlier)[1], with_text))
    assert (tokens - select(expected, active)).abs().max() < 1e-4
    assert (tokens - select(run_dense(model, now), active)).abs().max() > 1e-2, "the earlier keys count"


def test_it_runs_the_layers_of_the_denoiser(model: Lumina2) -> None:
    inputs = draw_inputs((12, 8), (7, 3), CHANNELS)
    before, cache = run(model, inputs)
    some = TokenChoice(choose(2, 24), cache)
    every = cases.linear_layers(model.denoiser, lambda: run_dense(model, inputs))
    assert every == cases.linear_layers(model.denoiser, lambda: run(model, inputs, some))
    with torch.no_grad():
        model.denoiser.layers[1].attn.to_v.weight.neg_()
    after, _ = run(model, inputs)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, run_dense(model, inputs), atol=1e-4)


def test_nothing_crosses_between_the_host_and_the_device() -> None:
    model = cases.make(Lumina2, "lumina2", META)
    inputs = draw_inputs((12, 8), (7, 3), CHANNELS)
    inputs = Inputs(inputs.x.to(META), inputs.t.to(META), inputs.condition.map(lambda tensor: tensor.to(META)))
    active = choose(2, 24).to(META)
    _, cache = run(model, inputs)
    with Transfers() as transfers:
        run(model, inputs, TokenChoice(active, cache, with_text=False))
    assert not transfers.reads + transfers.uploads


@pytest.mark.slow
@pytest.mark.parametrize("with_text", [True, False])
def test_an_exported_graph_of_some_tokens_equals_the_module(model: Lumina2, with_text: bool) -> None:
    cases.check_export(model, CHANNELS, with_text)
