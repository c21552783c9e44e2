"""Optical flow and warping against a known shift."""

from __future__ import annotations

import numpy as np

from engine.shared.optical_flow import OpticalFlow, warp


def test_a_shift_is_estimated_and_undone() -> None:
    generator = np.random.default_rng(0)
    noise = generator.uniform(0, 255, (16, 16)).astype(np.float32)
    texture = np.kron(noise, np.ones((8, 8), np.float32)).astype(np.uint8)
    shifted = np.roll(texture, 5, axis=1)
    pair = OpticalFlow().estimate(texture, shifted)
    inner = np.s_[24:-24, 24:-24]
    assert abs(np.median(pair.forward[inner][..., 0]) - 5) < 0.5
    assert abs(np.median(pair.backward[inner][..., 0]) + 5) < 0.5
    assert np.median(pair.round_trip_error()[inner]) < 0.5
    restored = warp(shifted, pair.forward)
    before = np.abs(shifted[inner].astype(int) - texture[inner]).mean()
    assert np.abs(restored[inner].astype(int) - texture[inner]).mean() < before / 3


def test_no_flow_is_the_picture_itself() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (warp(picture, np.zeros((4, 4, 2), np.float32)) == picture).all()
