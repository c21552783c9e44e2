"""Pairs of noise and picture for the noisiest timesteps, and pairs of source and restyled picture for image-to-image.

At the noisiest timesteps nothing of a picture is left. A small model that must answer every noise with every picture
answers with their mean, a blur. There each pattern has one fixed composition instead, in any colours. One step from
noise is then a regression, which few steps and few parameters can learn. Below ``FIRST_COUPLED_TIMESTEP`` any noise
goes with any picture.

``draw_restyled_pair`` draws the pairs for image-to-image: a source, and the same layout in the prompt's colours. The
share of the pattern's shapes in it grows with the strength.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.training.pocket.captions import PatternSpec
from engine.training.pocket.drawing import (
    Picture,
    apply_mood,
    draw,
    draw_dead_leaves,
    draw_power_law_noise,
    random_spec,
)
from engine.training.pocket.palette import paint, palette
from engine.training.pocket.patterns import PATTERNS, grid

FIRST_COUPLED_TIMESTEP = 960  # training timesteps from here up see coupled pairs only
#: Pattern → seed of its composition. The classifier names these drawings correctly, and their shapes are bold, because
#: latents hold coarse shapes best.
_COMPOSITION_SEEDS = {
    "plasma": 20, "tunnel": 6, "kaleidoscope": 5, "stripes": 11, "cells": 0, "rings": 13, "smoke": 5, "grid": 31,
    "stars": 43, "waves": 19, "fractal": 2, "ink": 21, "fire": 28, "aurora": 27, "spiral": 6, "dots": 24,
}  # fmt: skip
_NAMES = list(PATTERNS)


def composition_rng(pattern: str) -> np.random.Generator:
    """Return the generator from which every drawing of a pattern's fixed composition starts."""
    return np.random.default_rng((77, _NAMES.index(pattern), _COMPOSITION_SEEDS[pattern]))


def sort_colours(spec: PatternSpec) -> PatternSpec:
    """Return ``spec`` with its colours in alphabetical order, because a caption names them in either order."""
    return PatternSpec(spec.pattern, tuple(sorted(spec.colours)), spec.mood)


def draw_coupled(rng: np.random.Generator, size: int) -> tuple[PatternSpec, Picture]:
    """Draw a random pattern in its fixed composition, (size, size, 3) in 0..1."""
    spec = sort_colours(random_spec(rng))
    return spec, draw(spec, composition_rng(spec.pattern), size)


def draw_source(rng: np.random.Generator, size: int) -> Picture:
    """Draw a stand-in for live input: dead leaves, power-law noise or a pattern, (size, size, 3), 0..1."""
    kind = rng.random()
    if kind < 0.55:
        return draw_dead_leaves(rng, size)
    return draw_power_law_noise(rng, size) if kind < 0.68 else draw(random_spec(rng), rng, size)


def draw_restyled_pair(rng: np.random.Generator, strength: float, size: int) -> tuple[PatternSpec, Picture, Picture]:
    """Draw a spec, a source and the source restyled at ``strength`` 0..1, (size, size, 3) in 0..1 each."""
    spec, source = sort_colours(random_spec(rng)), draw_source(rng, size)
    return spec, source, restyle(spec, source, strength)


def restyle(spec: PatternSpec, source: Picture, strength: float) -> Picture:
    """Paint ``spec`` over ``source`` (size, size, 3) in 0..1 at ``strength``.

    The source's brightness remains as the layout. The spec's colours take over between 0.1 and 0.45. The pattern's
    shapes are 12 % until 0.4 and 85 % towards 1.
    """
    size = source.shape[0]
    grey = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)
    low, high = np.quantile(grey, (0.02, 0.98))
    grey = np.clip((grey - low) / max(float(high - low), 0.1), 0, 1)
    shape_share = 0.12 + 0.73 * _smoothstep(strength, 0.4, 0.95)
    rng = composition_rng(spec.pattern)
    field = PATTERNS[spec.pattern](rng, grid(size), float(rng.random()))
    field = np.clip(0.5 + 1.2 * ((1 - shape_share) * grey + shape_share * field - 0.5), 0, 1)
    picture = apply_mood(paint(field.astype(np.float32), palette(list(spec.colours), rng)), spec.mood, rng)
    colour_share = _smoothstep(strength, 0.1, 0.45)
    return (source * (1 - colour_share) + picture * colour_share).astype(np.float32)


def _smoothstep(value: float, low: float, high: float) -> float:
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3 - 2 * x)
