"""Frames between frames: motion half way, steady times, and stops that are no motion."""

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


def place(frame: Frame) -> float:
    """Middle of what is bright, in pixels from the left."""
    bright = (frame.pixels[..., 1] > 150).sum(0)
    return float((bright * np.arange(192)).sum() / bright.sum())


def pushed(way: str, interval: float = 0.1) -> Interpolator:
    between = Interpolator()
    for k in range(4):
        between.push(ball(60 + 10 * k, k), k * interval, way)
    return between


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_motion_is_shown_where_it_would_be(share: float) -> None:
    shown = pushed("flow").at(0.3 + 0.1 * share, "flow")
    assert shown is not None
    assert place(shown) == pytest.approx(80 + 10 * share, abs=1.0)
    mixed = pushed("blend").at(0.3 + 0.1 * share, "blend")
    assert mixed is not None
    expected = ball(80).pixels * (1 - share) + ball(90).pixels * share
    assert np.abs(mixed.pixels - expected).max() <= 1


def test_none_and_a_stop_show_the_newest() -> None:
    newest = ball(90)
    for between, way in ((pushed("none"), "none"), (pushed("flow", interval=0.7), "flow")):
        shown = between.at(between._arrived + 0.01, way)
        assert shown is not None
        assert np.array_equal(shown.pixels, newest.pixels)
    assert Interpolator().at(1.0, "flow") is None


def test_another_size_is_not_mixed() -> None:
    between = pushed("flow")
    small = Frame(np.zeros((64, 64, 4), np.uint8))
    between.push(small, 0.4, "flow")
    assert between.at(0.42, "flow") is small


def test_growing_with_sharpness_has_steeper_edges_and_the_same_flats() -> None:
    edge = np.zeros((32, 32, 4), np.uint8)
    edge[:, 16:] = 200
    plain, sharp = resize(edge, 128, 128).astype(int), resize(edge, 128, 128, 1.0).astype(int)
    assert np.abs(np.diff(sharp[64, :, 0])).max() > np.abs(np.diff(plain[64, :, 0])).max()
    assert abs(sharp[64, 120, 0] - 200) <= 1
    assert np.array_equal(resize(edge, 16, 16, 1.0), resize(edge, 16, 16))
