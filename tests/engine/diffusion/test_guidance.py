"""Residual guidance on clean predictions against the paper's formula on noise predictions."""

from __future__ import annotations

import pytest
import torch

from engine.diffusion import guidance


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.4, 7.5])
@pytest.mark.parametrize("delta", [0.0, 0.7, 1.0])
def test_the_residual_form_is_the_papers_formula(gamma: float, delta: float) -> None:
    torch.manual_seed(1)
    x, F, reference = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    a, b = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    predicted, residual = (x - a * F) / b, (x - a * reference) / b
    guided = delta * residual + gamma * (predicted - delta * residual)
    assert torch.allclose(guidance.residual(F, reference, x, a, gamma, delta), (x - b * guided) / a)


def test_gamma_one_is_no_guidance_for_every_delta() -> None:
    x, F, reference = torch.randn(3, 2, 4, 8, 8)
    for delta in (0.0, 0.5, 1.0):
        assert torch.allclose(guidance.residual(F, reference, x, torch.tensor(0.5), 1.0, delta), F)


def test_full_is_the_same_in_clean_and_in_noise_space() -> None:
    x, F, negative = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    a, b = 0.6, 0.8
    noise, other = (x - a * F) / b, (x - a * negative) / b
    assert torch.allclose(guidance.full(F, negative, 3.0), (x - b * (other + 3.0 * (noise - other))) / a)


def test_extra_rows_of_each_mode() -> None:
    assert [guidance.extra_rows(mode, 2.0) for mode in guidance.MODES] == ["", "all", "", "first"]
    assert [guidance.extra_rows(mode, 1.0) for mode in guidance.MODES] == [""] * 4
