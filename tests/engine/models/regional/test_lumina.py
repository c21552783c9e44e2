"""Lumina-Next with a choice of tokens: what diffusers computes for those tokens, whatever the others' keys are."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor

from engine.models.architectures.lumina import LuminaNext
from engine.models.regional.base import TokenChoice
from tests.engine.models.regional import lumina_cases as cases
from tests.engine.models.regional.lumina_cases import Inputs, choose, draw_inputs, run, select, tokens_of
from tests.engine.transfers import META, Transfers

CHANNELS = 4


@pytest.fixture
def model() -> LuminaNext:
    return cases.make(LuminaNext, "lumina")


def run_dense(model: LuminaNext, inputs: Inputs) -> Tensor:
    """Return the tokens of what diffusers' model computes: the velocity from the picture, time from 1 to 0."""
    height, width = inputs.x.shape[2:]
    scale = (height * 8 * width * 8) ** 0.5 / (16 * 8)  # the model was made for latents of side 16
    with torch.inference_mode():
        output = model.denoiser(
            inputs.x,
            1 - inputs.t / 1000,
            inputs.condition.tokens,
            inputs.condition.mask,
            get_2d_rotary_pos_embed_lumina(16, 384, 384, linear_factor=scale),
            {"base_sequence_length": 64},
            return_dict=False,
        )[0]
    return -tokens_of(output[:, :CHANNELS])


@pytest.mark.parametrize(("size", "lengths"), cases.CASES)
def test_all_tokens_are_those_of_the_dense_model(
    model: LuminaNext, size: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    inputs = draw_inputs(size, lengths, CHANNELS)
    tokens, cache = run(model, inputs)
    assert cache.shape == (len(lengths), 2, 2, size[0] * size[1] // 4, 16)
    assert torch.allclose(tokens, run_dense(model, inputs), atol=1e-4)
    with torch.inference_mode():
        dense = model.denoise(inputs.x, inputs.t, inputs.condition, 0.0)
    assert torch.allclose(tokens, tokens_of(dense), atol=1e-4)


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize(("size", "lengths"), cases.CASES)
def test_active_tokens_with_a_current_cache_are_those_of_the_dense_model(
    model: LuminaNext, size: tuple[int, int], lengths: tuple[int, ...], with_text: bool
) -> None:
    inputs = draw_inputs(size, lengths, CHANNELS)
    active = choose(len(lengths), size[0] * size[1] // 4)
    _, cache = run(model, inputs)
    tokens, computed = run(model, inputs, TokenChoice(active, cache, with_text))
    assert torch.allclose(tokens, select(run_dense(model, inputs), active), atol=1e-4)
    assert torch.allclose(computed, select(cache, active, 3), atol=1e-4)


@pytest.mark.parametrize("with_text", [True, False])
def test_skipped_tokens_keep_their_earlier_keys_and_values(model: LuminaNext, with_text: bool) -> None:
    size, lengths = (12, 16), (7, 12, 1)
    earlier, now = (draw_inputs(size, lengths, CHANNELS, seed) for seed in (1, 2))
    active = choose(3, 48)
    is_computed = torch.zeros(3, 48, dtype=torch.bool).scatter(1, active.flatten(1), True)
    expected = cases.run_stale(
        {block.attn1: is_computed for block in model.denoiser.layers},
        lambda: run_dense(model, earlier),
        lambda: run_dense(model, now),
    )
    tokens, _ = run(model, now, TokenChoice(active, run(model, earlier)[1], with_text))
    assert (tokens - select(expected, active)).abs().max() < 1e-4
    assert (tokens - select(run_dense(model, now), active)).abs().max() > 1e-2, "the earlier keys count"


def test_it_runs_the_layers_of_the_denoiser(model: LuminaNext) -> None:
    inputs = draw_inputs((12, 8), (7, 3), CHANNELS)
    before, cache = run(model, inputs)
    some = TokenChoice(choose(2, 24), cache)
    every = cases.linear_layers(model.denoiser, lambda: run_dense(model, inputs))
    assert every == cases.linear_layers(model.denoiser, lambda: run(model, inputs, some))
    with torch.no_grad():
        model.denoiser.layers[1].attn1.to_v.weight.neg_()
    after, _ = run(model, inputs)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, run_dense(model, inputs), atol=1e-4)


def test_nothing_crosses_between_the_host_and_the_device() -> None:
    model = cases.make(LuminaNext, "lumina", META)
    inputs = draw_inputs((12, 8), (7, 3), CHANNELS)
    inputs = Inputs(inputs.x.to(META), inputs.t.to(META), inputs.condition.map(lambda tensor: tensor.to(META)))
    active = choose(2, 24).to(META)
    _, cache = run(model, inputs)
    with Transfers() as transfers:
        run(model, inputs, TokenChoice(active, cache, with_text=False))
    assert not transfers.reads + transfers.uploads


@pytest.mark.slow
def test_an_exported_graph_of_some_tokens_equals_the_module(model: LuminaNext) -> None:
    cases.check_export(model, CHANNELS, with_text=False)
