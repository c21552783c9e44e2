"""Quality of generated pictures as figures: energy by spatial frequency, and the Fréchet distance of features."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.shared.frame import Pixels

#: Lower bounds of the frequency bands, in cycles a pixel. Each ends where the next begins, the last at the corner.
BAND_STARTS = (1 / 64, 1 / 16, 1 / 8, 1 / 4)
BAND_NAMES = ("1/64–1/16", "1/16–1/8", "1/8–1/4", "1/4–")


def band_energies(pictures: Sequence[Pixels], windowed: bool = False) -> NDArray[np.float64]:
    """Return the mean energy of the pictures' luminance in each band, (4,), as variance of values in 0..1.

    Pictures are RGB uint8. A spectrum is that of a picture that repeats, so the step between opposite borders has a
    share in every band. A Hann window, with ``windowed``, keeps it out, and weighs the middle more.
    """
    return np.mean([_band_energies(picture, windowed) for picture in pictures], 0)


def _band_energies(picture: Pixels, windowed: bool) -> NDArray[np.float64]:
    luminance = cv2.cvtColor(np.ascontiguousarray(picture[..., :3]), cv2.COLOR_RGB2GRAY).astype(np.float64) / 255
    height, width = luminance.shape
    window = np.outer(_hann(height), _hann(width)) if windowed else np.ones((height, width))
    luminance -= (luminance * window).sum() / window.sum()
    energy = np.abs(np.fft.fft2(luminance * window)) ** 2 / (window**2).sum() / luminance.size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    band = np.digitize(frequency, BAND_STARTS)
    return np.array([energy[band == i].sum() for i in range(1, len(BAND_STARTS) + 1)])


def _hann(count: int) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(count) + 0.5) / count)


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return the Fréchet distance of two sets of features, (N, D) and (M, D), each taken as a Gaussian.

    ‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2·(C₁C₂)^½) (Heusel et al., arXiv 1706.08500, section 3). The root's trace is the sum of
    the singular values of X₁X₂ᵀ, for centred features X over √(N − 1), or of R₁R₂ᵀ for their QR decompositions. So no
    root of a matrix is needed, and fewer pictures than features are exact. Raises ValueError below two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two rows, got {len(a)} and {len(b)}")
    x, y = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (a.astype(np.float64), b.astype(np.float64)))
    mean = float(np.square(a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)).sum())
    first, second = (np.linalg.qr(rows)[1] for rows in (x, y))
    root = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return max(0.0, mean + float(np.square(x).sum() + np.square(y).sum()) - 2 * root)  # rounding, for equal sets
