"""Temporal accumulation: the history follows the input's motion, and is dropped where that is uncertain."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from engine.image.temporal import MotionEstimator, TemporalAccumulator


def texture(seed: int, size: int = 192) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.random((size, size, 3), dtype=np.float32), (0, 0), 3) * 4 - 1.5


def window(picture: np.ndarray, k: int) -> torch.Tensor:
    """Return a window that moves 3 pixels right and 1 down each frame, (1, 3, 96, 128) in 0..1."""
    y, x = 10 + k, 10 + 3 * k
    return torch.from_numpy(picture[y : y + 96, x : x + 128].clip(0, 1)).permute(2, 0, 1)[None]


def test_share_zero_accumulates_nothing() -> None:
    accumulator, picture = TemporalAccumulator(), torch.rand(1, 3, 32, 32)
    assert accumulator.accumulate(picture, picture, 0.0) is picture


def test_paint_follows_the_motion_of_the_input() -> None:
    source, paint = texture(0), texture(1)
    accumulator, rng = TemporalAccumulator(), torch.Generator().manual_seed(2)
    plain, steady = [], []
    for k in range(10):
        # Diffusion flickers in blots of a latent's cell, not in single pixels.
        blots = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 16, generator=rng), (96, 128), mode="bilinear")
        noisy = window(paint, k) + 0.15 * blots
        out = accumulator.accumulate(noisy, window(source, k), 0.8)
        inner = (slice(None), slice(None), slice(12, -12), slice(16, -16))
        plain.append((noisy - window(paint, k))[inner].abs().mean().item())
        steady.append((out - window(paint, k))[inner].abs().mean().item())
    assert np.mean(steady[4:]) < 0.6 * np.mean(plain[4:])


def test_a_cut_drops_the_history() -> None:
    accumulator = TemporalAccumulator()
    accumulator.accumulate(torch.zeros(1, 3, 96, 128), window(texture(3), 0), 0.9)
    after = torch.ones(1, 3, 96, 128)
    out = accumulator.accumulate(after, 1 - window(texture(4), 0), 0.9)
    assert (after - out).mean() < 0.1
    accumulator.reset()
    assert torch.equal(accumulator.accumulate(after, window(texture(3), 0), 0.9), after)


def test_another_size_drops_the_history() -> None:
    accumulator = TemporalAccumulator()
    accumulator.accumulate(torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64), 0.9)
    picture = torch.rand(1, 3, 48, 80)
    assert torch.equal(accumulator.accumulate(picture, torch.rand(1, 3, 48, 80), 0.9), picture)


def test_accumulated_paint_keeps_its_sharpness_without_gaining_any() -> None:
    """Over a long pan by half pixels and over a long still: the sharpening must not build up."""

    def edges(picture: torch.Tensor) -> float:
        return float((picture[..., 12:-12, 13:-12] - picture[..., 12:-12, 12:-13]).abs().mean())

    large, paint = texture(0, 384), texture(1, 384)
    for pace in (0.0, 0.5):
        accumulator, ratios = TemporalAccumulator(), []
        for k in range(60):
            shift = np.array([[1, 0, -pace * k], [0, 1, 0]], np.float32)
            views = [
                cv2.warpAffine(p, shift, (384, 384), flags=cv2.INTER_CUBIC)[40:136, 40:168].clip(0, 1)
                for p in (paint, large)
            ]
            diffused, source = (torch.from_numpy(view).permute(2, 0, 1)[None] for view in views)
            ratios.append(edges(accumulator.accumulate(diffused, source, 0.9)) / edges(diffused))
        assert all(0.9 < ratio < 1.4 for ratio in ratios)
        assert np.mean(ratios[-10:]) < 1.05 * np.mean(ratios[10:20])


def test_motion_estimated_ahead_gives_the_same_pictures() -> None:
    """As on a GPU: when a picture enters, not when its output is there. A dropped picture is estimated again."""
    source, paint = texture(0), texture(1)
    on_demand, ahead, estimator = TemporalAccumulator(), TemporalAccumulator(), MotionEstimator()
    for k in range(6):
        inputs, diffused = window(source, k), window(paint, k)
        motions = estimator.estimate([inputs], 128, 96)
        assert (motions[0].field is None) == (k == 0)
        if k == 2:
            continue  # filtered: it never enters
        estimator.enter(motions[0])
        if k == 4:
            continue  # dropped on its way, so that the next motion is that since another picture
        expected = on_demand.accumulate(diffused, inputs, 0.8)
        assert torch.equal(ahead.accumulate(diffused, inputs, 0.8, motions), expected), k


def test_several_pictures_follow_each_other() -> None:
    source = texture(0)
    windows = [window(source, k) for k in range(3)]
    batch = MotionEstimator().estimate(windows, 128, 96)
    one_by_one = MotionEstimator()
    for picture, motion in zip(windows, batch, strict=True):
        (single,) = one_by_one.estimate([picture], 128, 96)
        one_by_one.enter(single)
        assert (single.field is None) == (motion.field is None)
        assert single.field is None or torch.equal(single.field, motion.field)
