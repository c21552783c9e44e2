"""FLUX.2 with a choice of tokens against the denoiser of diffusers."""

from __future__ import annotations

import pytest
import torch

from tests.engine.models.regional.flux_cases import (
    Inputs,
    check_all_tokens,
    check_changed_weights,
    check_half_precision,
    check_left_out_text,
    check_stale_cache,
    check_unchanged_inputs,
    make_flux2,
)
from tests.engine.models.regional.flux_export import check_export

#: (rows, height, width) of latents.
SIZES = [(1, 48, 32), (3, 6, 10), (3, 2, 1)]


@pytest.mark.parametrize("is_guided", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_all_tokens_equal_the_denoiser(size: tuple[int, int, int], is_guided: bool) -> None:
    check_all_tokens(Inputs(make_flux2(is_guided), *size))


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_active_tokens_of_unchanged_inputs_equal_the_denoiser(size: tuple[int, int, int], with_text: bool) -> None:
    inputs = Inputs(make_flux2(), *size)
    check_unchanged_inputs(inputs, max(1, inputs.tokens // 4), with_text)


def test_half_precision_equals_the_denoiser_to_its_rounding() -> None:
    check_half_precision(Inputs(make_flux2(dtype=torch.bfloat16), 2, 8, 4))


@pytest.mark.parametrize("texts", [(True, False, True), (False, False, True)])
def test_skipped_tokens_are_attended_to_as_they_last_were(
    texts: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    flux = make_flux2()
    check_stale_cache(monkeypatch, [Inputs(flux, 3, 8, 12, seed) for seed in range(4)], texts)


def test_changed_weights_act() -> None:
    check_changed_weights(Inputs(make_flux2(), 1, 8, 4))


def test_without_text_its_layers_do_not_run() -> None:
    text_layers = ("double_stream_modulation_txt", "ff_context", "context_embedder", ".attn.add_", "to_add_out")
    check_left_out_text(Inputs(make_flux2(), 2, 8, 4), text_layers)


@pytest.mark.slow
def test_the_exported_graph_equals_the_module() -> None:
    check_export(make_flux2(), with_text=False)
