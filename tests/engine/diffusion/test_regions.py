"""The formulas of region-adaptive sampling, against slow independent calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.diffusion import regions
from tests.engine.diffusion.regional_reference import Sampling, choose_skipped


@pytest.mark.parametrize(
    ("share", "nearest"),
    [(1.0, 1.0), (0.8, 1.0), (0.6, 0.5), (0.3, 0.25), (0.1, 0.125), (0.0625, 0.0625), (0.08, 0.0625)],
)
def test_a_share_is_rounded_by_ratio(share: float, nearest: float) -> None:
    assert regions.nearest_share(share) == nearest


@pytest.mark.parametrize("tokens", [1, 7, 48, 256, 1536])
@pytest.mark.parametrize("share", regions.SHARES)
def test_at_least_one_token_is_active_and_all_but_k_are(tokens: int, share: float) -> None:
    active = regions.count_active(tokens, share)
    assert active == tokens - math.floor((1 - share) * tokens)
    assert 1 <= active <= tokens


def test_the_smallest_share_covers_what_is_needed_within_the_budget() -> None:
    assert [regions.smallest_share(256, needed, 0.5) for needed in (0, 1, 16, 17, 33, 65, 129, 256)] == [
        0.0, 0.0625, 0.0625, 0.125, 0.25, 0.5, 0.5, 0.5,
    ]  # fmt: skip


def test_a_ramp_falls_from_everything_to_the_share() -> None:
    shares = [regions.ramped_share(0.125, 1.0, position, 4, 28) for position in range(4, 28)]
    assert shares[0] == 1.0
    assert shares[-1] == 0.125
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 4
    half = [regions.ramped_share(0.125, 0.5, position, 4, 28) for position in range(4, 28)]
    assert sum(half) < sum(shares)
    assert {regions.ramped_share(0.125, 0.0, position, 4, 28) for position in range(4, 28)} == {0.125}


def test_dense_steps_are_the_first_ones_and_the_resets() -> None:
    dense = [p for p in range(28) if regions.is_dense_step(p, 4, (12, 22))]
    assert dense == [0, 1, 2, 3, 12, 22]
    assert [p for p in range(28) if regions.fills_cache(p, 4, (12, 22))] == [3, 12, 22]


def test_tokens_and_latents_are_inverse() -> None:
    x = torch.randn(2, 3, 6, 4)
    tokens = regions.to_tokens(x, 2)
    assert tokens.shape == (2, 6, 12)
    patch = x[1, :, 2:4, 2:4]  # row 1, column 1 of a grid of 3 × 2
    assert torch.equal(tokens[1, 3], patch.reshape(-1))
    assert torch.equal(regions.to_latents(tokens, 2, 6, 4), x)


def test_the_metrics_are_means_over_patches() -> None:
    v = torch.randn(2, 5, 4, 6)
    std, l2 = regions.metric(v, "std", 2), regions.metric(v, "l2", 2)
    values = v.numpy()
    for row, (i, j) in [(0, (0, 0)), (1, (1, 2))]:
        patch = values[row, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert std[row, i * 3 + j].item() == pytest.approx(patch.std(0, ddof=1).mean(), rel=1e-5)
        assert l2[row, i * 3 + j].item() == pytest.approx(np.sqrt((patch**2).sum(0)).mean(), rel=1e-5)
    drawn = regions.metric(v, "random", 2, torch.Generator().manual_seed(1))
    assert drawn.shape == (2, 6)
    assert len(set(drawn.flatten().tolist())) == 12


@pytest.mark.parametrize("high", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.0625])
def test_the_focus_equals_sorting(share: float, high: float) -> None:
    rng = np.random.default_rng(2)
    m, d = rng.random((3, 50)), rng.integers(0, 30, (3, 50)).astype(float)
    active = regions.select_focus(torch.from_numpy(m), torch.from_numpy(d), share, high, 0.1)
    for row in range(3):
        skipped = choose_skipped(m[row], d[row], Sampling(4, (), share, high, 0.1))
        assert active[row].tolist() == np.flatnonzero(~skipped).tolist()


@pytest.mark.parametrize("high", [0.0, 0.5, 1.0])
def test_a_token_that_was_skipped_for_long_is_computed_from_either_side(high: float) -> None:
    m, d = torch.linspace(1.0, 2.0, 40)[None], torch.zeros(1, 40)
    turns = torch.zeros(40)
    for _ in range(60):
        active = regions.select_focus(m, d, 0.25, high, 0.1)
        d = d + 1
        d[0, active[0]] = 0
        turns[active[0]] += 1
    assert turns.min() > 0


def test_a_change_is_that_of_the_clean_latent() -> None:
    z, changed = torch.randn(1, 6, 12), torch.randn(1, 6, 12)
    a, noise = 0.4, torch.randn(1, 6, 12)
    change = regions.change(a * changed + noise, a * z + noise, torch.tensor([[a]]))
    assert torch.allclose(change, (changed - z).abs().mean(2), atol=1e-6)


def test_every_token_is_due_once_in_the_refresh_time() -> None:
    phases = regions.refresh_phases(256, 32)
    assert torch.equal(phases.bincount(minlength=32), torch.full((32,), 8))
    assert not torch.equal(phases, phases.sort().values), "neighbours are due together"
    assert torch.equal(regions.refresh_phases(5, 32).unique().bincount(minlength=32) <= 1, torch.ones(32, dtype=bool))


def test_due_then_stale_then_changed_and_long_skipped_ones_first() -> None:
    changes = torch.tensor([[0.01, 0.2, 0.3, 0.0, 0.9, 0.06]])
    d = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0, 0.0]])
    stale = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 0.0]])
    due = torch.tensor([False, False, False, False, False, True])
    score = regions.score_changes(changes, 0.05, d, 0.1, stale, due)
    assert score.argsort(1, descending=True)[0].tolist()[:5] == [5, 4, 3, 1, 2]
    assert score[0, 0] == 0.0
    assert regions.select_highest(score, d, 2)[0].tolist() == [4, 5]
    equal = torch.zeros(1, 6)
    assert regions.select_highest(equal, d, 1)[0].tolist() == [1]


def test_no_score_overflows_after_a_night_of_skips() -> None:
    m, d = torch.tensor([[0.0, 0.3, 0.6, 0.1]]), torch.tensor([[1e6, 1e6, 0.0, 1e6]])
    filled = regions.add_focus(torch.tensor([[0.0, 0.0, 5.0, 0.0]]), m, d, 2.0)
    assert filled.isfinite().all()
    assert filled[0].argmax() == 2
    changes = regions.score_changes(torch.full((1, 4), 0.2), 0.05, d, 2.0, torch.zeros(1, 4), torch.tensor([False] * 4))
    assert changes.isfinite().all()
    assert regions.select_focus(m, d, 0.5, 0.5, 2.0).shape == (1, 2)


def test_the_focus_fills_what_changes_leave() -> None:
    score = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
    filled = regions.add_focus(score, torch.tensor([[0.3, 9.0, 0.6, 0.1]]), torch.tensor([[0.0, 0.0, 0.0, 30.0]]), 0.1)
    assert filled[0, 1] == 5.0
    assert filled[0].argsort(descending=True).tolist() == [1, 3, 2, 0]
    assert filled[0, [0, 2, 3]].max() < 1.0
