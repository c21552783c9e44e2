"""Interpolated frames: positions along the motion, stops without motion, and sharpened enlargement."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bridge.images import resize
from bridge.show.interpolation import Interpolator
from engine.shared.frame import Frame


def ball(x: float, number: int = 0) -> Frame:
    canvas = np.full((128, 192, 4), 255, np.uint8)
    canvas[..., :3] = cv2.GaussianBlur(
        np.random.default_rng(3).integers(0, 90, (128, 192, 3), dtype=np.uint8), (0, 0), 4
    )
    cv2.circle(canvas, (int(x * 16), 64 * 16), 18 * 16, (250, 240, 230, 255), -1, cv2.LINE_AA, shift=4)
    return Frame(canvas, number)


def locate_ball(frame: Frame) -> float:
    """Return the centre of the bright pixels, in pixels from the left."""
    bright = (frame.pixels[..., 1] > 150).sum(0)
    return float((bright * np.arange(192)).sum() / bright.sum())


def interpolate(method: str, interval: float = 0.1) -> Interpolator:
    """Return an interpolator after four frames, ``interval`` seconds apart, of a ball at 60, 70, 80 and 90 pixels."""
    interpolator = Interpolator()
    for k in range(4):
        interpolator.push(ball(60 + 10 * k, k), k * interval, method)
    return interpolator


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_ball_is_shown_at_its_share_of_the_way(share: float) -> None:
    shown = interpolate("flow").at(0.3 + 0.1 * share, "flow")
    assert shown is not None
    assert locate_ball(shown) == pytest.approx(80 + 10 * share, abs=1.0)
    mixed = interpolate("blend").at(0.3 + 0.1 * share, "blend")
    assert mixed is not None
    expected = ball(80).pixels * (1 - share) + ball(90).pixels * share
    assert np.abs(mixed.pixels - expected).max() <= 1


def test_none_and_a_stop_show_the_newest() -> None:
    newest = ball(90)
    for interpolator, method in ((interpolate("none"), "none"), (interpolate("flow", interval=0.7), "flow")):
        shown = interpolator.at(interpolator._arrived + 0.01, method)
        assert shown is not None
        assert np.array_equal(shown.pixels, newest.pixels)
    assert Interpolator().at(1.0, "flow") is None


def test_it_starts_with_the_second_frame_at_any_uptime_and_after_a_stop() -> None:
    interpolator = Interpolator()
    for start in (5_000.0, 5_010.0):
        interpolator.push(ball(60), start, "blend")
        interpolator.push(ball(70), start + 0.1, "blend")
        shown = interpolator.at(start + 0.15, "blend")
        assert shown is not None
        assert np.abs(shown.pixels.astype(int) - (ball(60).pixels.astype(int) + ball(70).pixels) // 2).max() <= 1


def test_another_size_is_not_mixed() -> None:
    interpolator = interpolate("flow")
    small = Frame(np.zeros((64, 64, 4), np.uint8))
    interpolator.push(small, 0.4, "flow")
    assert interpolator.at(0.42, "flow") is small


def test_a_sharpened_enlargement_has_steeper_edges_and_the_same_flat_areas() -> None:
    edge = np.zeros((32, 32, 4), np.uint8)
    edge[:, 16:] = 200
    plain, sharp = resize(edge, 128, 128).astype(int), resize(edge, 128, 128, 1.0).astype(int)
    assert np.abs(np.diff(sharp[64, :, 0])).max() > np.abs(np.diff(plain[64, :, 0])).max()
    assert abs(sharp[64, 120, 0] - 200) <= 1
    assert np.array_equal(resize(edge, 16, 16, 1.0), resize(edge, 16, 16))
