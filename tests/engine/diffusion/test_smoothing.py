"""Latent smoothing against its formula, written out for single cells."""

from __future__ import annotations

import math

import pytest
import torch

from engine.diffusion.smoothing import MOTION_THRESHOLD, LatentSmoother

SHAPE = (4, 2, 3)


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(seed))


def test_a_share_of_0_changes_nothing_and_forgets() -> None:
    smoother = LatentSmoother()
    z, D = latents(2)
    assert torch.equal(smoother.smooth(z[None], D[None], 0.9)[0], D)
    other = latents(1, 7)
    assert smoother.smooth(z[None], other, 0.0) is other
    assert torch.equal(smoother.smooth(z[None], D[None], 0.9)[0], D), "the first frame after that is unchanged"


def test_over_a_still_input_it_is_a_running_mean() -> None:
    smoother, z, outputs = LatentSmoother(), latents(1), latents(6, 1)
    expected = outputs[0]
    for k, D in enumerate(outputs):
        expected = D if k == 0 else 0.3 * D + 0.7 * expected
        assert torch.allclose(smoother.smooth(z, D[None], 0.7)[0], expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_each_cell_follows_the_motion_of_its_input(share: float) -> None:
    (z, next_z), (D, next_D) = latents(2), latents(2, 1)
    next_z = z + (next_z - z) * torch.tensor([0.0, 0.1, 3.0])  # one column each: still, slow, fast
    smoother = LatentSmoother()
    smoother.smooth(z[None], D[None], share)
    smoothed = smoother.smooth(next_z[None], next_D[None], share)[0]
    for y in range(SHAPE[1]):
        for x in range(SHAPE[2]):
            change = sum(abs(float(next_z[c, y, x] - z[c, y, x])) for c in range(SHAPE[0])) / SHAPE[0]
            weight = share * math.exp(-((change / MOTION_THRESHOLD) ** 2))
            for c in range(SHAPE[0]):
                expected = (1 - weight) * float(next_D[c, y, x]) + weight * float(D[c, y, x])
                assert float(smoothed[c, y, x]) == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(smoothed[..., 2], next_D[..., 2], atol=1e-3), "fast motion is not smoothed"


def test_a_batch_is_smoothed_frame_by_frame() -> None:
    z, D = latents(5) * 0.02, latents(5, 1)
    one_by_one, batch = LatentSmoother(), LatentSmoother()
    expected = torch.cat([one_by_one.smooth(z[i : i + 1], D[i : i + 1], 0.6) for i in range(5)])
    assert torch.equal(torch.cat([batch.smooth(z[:2], D[:2], 0.6), batch.smooth(z[2:], D[2:], 0.6)]), expected)
    assert (expected - D).abs().max() > 0.1


def test_a_reset_forgets_the_last_frame() -> None:
    smoother, z, (first, second) = LatentSmoother(), latents(1), latents(2, 1)
    smoother.smooth(z, first[None], 0.8)
    smoother.reset()
    assert torch.equal(smoother.smooth(z, second[None], 0.8)[0], second)
