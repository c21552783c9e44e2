"""Comparison at equal time: what another method reaches in as long as one took, and who loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.shared.frame import Pixels

#: Squared error of a white picture against a black one, per value.
PEAK = 255.0**2


def squared_error(picture: Pixels, reference: Pixels) -> float:
    """Return the mean squared difference of two uint8 pictures of one size."""
    difference = picture.astype(np.float32) - reference.astype(np.float32)
    return float(np.square(difference).mean())


def psnr(squared_errors: Sequence[float]) -> float | None:
    """Return the peak signal-to-noise ratio of pictures in dB, from their mean squared errors; None if all are 0."""
    error = float(np.mean(squared_errors))
    return round(float(10.0 * np.log10(PEAK / error)), 2) if error > 0.0 else None


def at_time(curve: Sequence[tuple[float, float | None]], time: float) -> float | None:
    """Return a method's quality at a time, interpolated between its settings' (time, quality).

    Beyond its fastest and slowest setting it is that setting's. Settings without a quality do not count.
    """
    points = sorted((t, quality) for t, quality in curve if quality is not None)
    if not points:
        return None
    times, qualities = zip(*points, strict=True)
    return round(float(np.interp(time, times, qualities)), 2)


def judge(quality: float | None, others: Mapping[str, float | None], tie: float, higher_wins: bool = True) -> str:
    """Return a sentence on which of the ``others`` a method loses to, equals within ``tie``, and beats."""
    sides: dict[str, list[str]] = {"loses to": [], "equals": [], "beats": []}
    for name, other in others.items():
        if quality is None or other is None:
            continue
        lead = quality - other if higher_wins else other - quality
        side = "equals" if abs(lead) <= tie else "beats" if lead > 0 else "loses to"
        sides[side].append(name if side == "equals" else f"{name} by {abs(lead):.1f}")
    return "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
