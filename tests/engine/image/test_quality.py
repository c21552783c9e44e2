"""Quality figures: energies of pictures with known spectra, distances of Gaussians with known moments."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.image.quality import BAND_NAMES, BAND_STARTS, band_energies, frechet_distance


def draw_wave(cycles: tuple[int, int], amplitude: float, side: int = 128) -> NDArray[np.uint8]:
    """Draw a grey wave with a number of cycles down and across."""
    y, x = np.mgrid[:side, :side]
    wave = np.cos(2 * np.pi * (cycles[0] * y + cycles[1] * x) / side)
    return np.repeat(np.round(127.5 + 255 * amplitude * wave)[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(
    ("cycles", "band"),
    [((4, 0), 0), ((0, 11), 1), ((9, 9), 1), ((24, 0), 2), ((-20, 20), 2), ((0, 40), 3), ((60, 60), 3)],
)
def test_a_wave_has_its_energy_in_its_band(cycles: tuple[int, int], band: int, windowed: bool) -> None:
    energies = band_energies([draw_wave(cycles, 0.4)], windowed)
    assert energies.shape == (len(BAND_STARTS),) == (len(BAND_NAMES),)
    assert energies[band] == pytest.approx(0.4**2 / 2, rel=0.01)  # the variance of a cosine
    assert np.delete(energies, band).max() < 1e-3 * energies[band]


def test_energies_add_up_to_the_variance_and_average_over_pictures() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (256, 256, 1), np.uint8).repeat(3, -1)
    energies = band_energies([noise, np.full_like(noise, 90)])
    assert energies.sum() == pytest.approx((noise[..., 0] / 255).var() / 2, rel=0.01)
    # White noise has energy by area: rings of the frequency plane, whose square has area 1.
    areas = np.pi * np.diff(np.square(BAND_STARTS))
    assert energies[:3] / energies.sum() == pytest.approx(areas, rel=0.1)


def test_a_window_leaves_the_step_at_the_borders_out() -> None:
    ramp = np.linspace(0, 255, 128).astype(np.uint8)[None, :, None].repeat(128, 0).repeat(3, -1)
    plain, windowed = band_energies([ramp]), band_energies([ramp], windowed=True)
    assert plain[3] > 1e-4
    assert windowed[3] < 0.05 * plain[3]


def test_the_distance_is_that_of_the_gaussians() -> None:
    rng = np.random.default_rng(2)
    mixes = [rng.normal(size=(4, 4)), rng.normal(size=(4, 4))]
    a, b = (rng.normal(size=(5000, 4)) @ mix + shift for mix, shift in zip(mixes, (0.0, 0.7), strict=True))
    first, second = np.cov(a.T), np.cov(b.T)
    eigenvalues = np.linalg.eigvals(first @ second)
    root = np.sqrt(eigenvalues.real).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_independent_axes_have_a_distance_by_hand() -> None:
    # Axis by axis: the square of the difference of means, and of standard deviations.
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float) * np.sqrt(3 / 4)  # covariance 1 with n - 1
    a, b = signs * [1.0, 5.0], signs * [4.0, 3.0] + [2.0, -1.0]
    assert frechet_distance(a, b) == pytest.approx(2**2 + 1**2 + 3**2 + 2**2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_fewer_pictures_than_features_are_exact_and_one_is_rejected() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(6, 40)).astype(np.float32), rng.normal(size=(7, 40)).astype(np.float32)
    rotation, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-5)
    assert frechet_distance(a, a + 1) == pytest.approx(40, rel=1e-5)
    with pytest.raises(ValueError, match="got 1 and 7"):
        frechet_distance(a[:1], b)
