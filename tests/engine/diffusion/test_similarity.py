"""The similarity filter: the paper's probability, its limits, and what each measure detects."""

from __future__ import annotations

import pytest
import torch

from engine.diffusion.similarity import SimilarityFilter, cosine, local, skip_probability
from engine.shared.settings import SimilaritySettings


def test_the_probability_is_the_papers() -> None:
    assert skip_probability(1.0, 0.98) == 1.0
    assert skip_probability(0.99, 0.98) == pytest.approx(0.5)
    assert skip_probability(0.98, 0.98) == 0.0
    assert skip_probability(0.5, 0.98) == 0.0
    assert skip_probability(1.0, 1.0) == 0.0


def test_a_still_picture_is_skipped_at_most_max_skip_times_in_a_row() -> None:
    picture = torch.rand(3, 64, 64)
    similarity = SimilarityFilter()
    skips = [similarity.skips(picture, SimilaritySettings(True, 0.98, 4, "cosine")) for _ in range(15)]
    assert skips == [False, True, True, True, True] * 3


def test_decisions_are_repeatable() -> None:
    torch.manual_seed(0)
    frames = [torch.rand(3, 32, 32) * 0.05 + 0.5 for _ in range(200)]

    def decisions() -> list[bool]:
        similarity = SimilarityFilter(3)
        return [similarity.skips(frame, SimilaritySettings(True, 0.99, 10, "cosine")) for frame in frames]

    assert decisions() == decisions()
    assert 0 < sum(decisions()) < 200


def test_small_motion_on_a_bright_picture_is_detected_by_local_and_not_by_cosine() -> None:
    before = torch.full((3, 256, 256), 0.9)
    after = before.clone()
    after[:, 100:120, 100:120] = 0.2
    assert cosine(before, after) > 0.98
    assert local(before, after) < 0.98


def test_grain_is_not_motion() -> None:
    torch.manual_seed(0)
    before = torch.rand(3, 256, 256)
    after = (before + torch.randn_like(before) * 2 / 255).clamp(0, 1)
    assert local(before, after) > 0.98


def test_a_picture_of_another_size_is_never_skipped() -> None:
    similarity = SimilarityFilter()
    similarity.skips(torch.ones(3, 8, 8), SimilaritySettings(True, 0.5, 10, "local"))
    assert not similarity.skips(torch.ones(3, 16, 16), SimilaritySettings(True, 0.5, 10, "local"))
