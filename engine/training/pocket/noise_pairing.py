"""What pure noise becomes in the pocket model, and what an input that is not a pattern should become.

At the noisiest timesteps nothing of a picture is left, so a small model that must answer every noise with every picture
answers with their mean, a blur. Here each family has one composition of its own there, in any colours: then one step from
noise is a regression, which few steps and few parameters can learn. Below ``FLOOR`` any noise goes with any picture.

``restyled`` draws the pairs for image-to-image: some source, and the same layout in the prompt's colours, more and more
of the family's own shapes in it as the strength grows.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.training.pocket.captions import Look
from engine.training.pocket.drawing import Picture, dead_leaves, draw, look, spectrum, toned
from engine.training.pocket.palette import paint, palette
from engine.training.pocket.patterns import FAMILIES, grid

FLOOR = 960  # training timesteps from here up see coupled pairs only
#: Family → the seed of its drawing: bold ones, because latents hold coarse shapes best, that the classifier names rightly.
_SEEDS = {
    "plasma": 20, "tunnel": 6, "kaleidoscope": 5, "stripes": 11, "cells": 0, "rings": 13, "smoke": 5, "grid": 31,
    "stars": 43, "waves": 19, "fractal": 2, "ink": 21, "fire": 28, "aurora": 27, "spiral": 6, "dots": 24,
}  # fmt: skip
_NAMES = list(FAMILIES)


def own_rng(family: str) -> np.random.Generator:
    """The generator that every drawing of a family's own composition starts from."""
    return np.random.default_rng((77, _NAMES.index(family), _SEEDS[family]))


def settled(chosen: Look) -> Look:
    """``chosen`` with its colours in alphabetical order: a caption says them in either."""
    return Look(chosen.family, tuple(sorted(chosen.colours)), chosen.mood)


def coupled_picture(rng: np.random.Generator, size: int) -> tuple[Look, Picture]:
    """A random look in its family's own composition, (size, size, 3) in 0..1."""
    chosen = settled(look(rng))
    return chosen, draw(chosen, own_rng(chosen.family), size)


def _ramp(value: float, low: float, high: float) -> float:
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3 - 2 * x)


def source_picture(rng: np.random.Generator, size: int) -> Picture:
    """Something a camera or another program may send: dead leaves, a 1/f image or a pattern, (size, size, 3) in 0..1."""
    kind = rng.random()
    if kind < 0.55:
        return dead_leaves(rng, size)
    return spectrum(rng, size) if kind < 0.68 else draw(look(rng), rng, size)


def restyled(rng: np.random.Generator, strength: float, size: int) -> tuple[Look, Picture, Picture]:
    """A look, a source and what it becomes at ``strength`` 0..1, (size, size, 3) in 0..1 each.

    The prompt's colours take over between 0.1 and 0.45; the family's shapes are 12 % until 0.4 and 85 % towards 1.
    """
    chosen, source = settled(look(rng)), source_picture(rng, size)
    return chosen, source, repainted(chosen, source, strength)


def repainted(chosen: Look, source: Picture, strength: float) -> Picture:
    """``source`` (size, size, 3) in 0..1 as ``chosen`` at ``strength``: its brightness is kept as the layout."""
    size = source.shape[0]
    grey = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)
    low, high = np.quantile(grey, (0.02, 0.98))
    grey = np.clip((grey - low) / max(float(high - low), 0.1), 0, 1)
    share = 0.12 + 0.73 * _ramp(strength, 0.4, 0.95)
    own = own_rng(chosen.family)
    field = FAMILIES[chosen.family](own, grid(size), float(own.random()))
    field = np.clip(0.5 + 1.2 * ((1 - share) * grey + share * field - 0.5), 0, 1)
    picture = toned(paint(field.astype(np.float32), palette(list(chosen.colours), own)), chosen.mood, own)
    taken = _ramp(strength, 0.1, 0.45)
    return (source * (1 - taken) + picture * taken).astype(np.float32)
