"""Captions of drawn pictures: plain, varied words for a pattern, its colours and its mood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Pattern → the words people use for it; the first is the pattern's name.
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plasma": ("plasma", "lava lamp", "liquid plasma", "plasma field"),
    "tunnel": ("tunnel", "wormhole", "corridor", "endless tunnel"),
    "kaleidoscope": ("kaleidoscope", "mandala", "mirrored crystal", "kaleidoscopic pattern"),
    "stripes": ("stripes", "bars", "lines", "striped pattern"),
    "cells": ("cells", "voronoi", "cracked glass", "cell structure"),
    "rings": ("rings", "circles", "ripples", "concentric rings"),
    "smoke": ("smoke", "clouds", "fog", "drifting smoke"),
    "grid": ("grid", "mesh", "wireframe floor", "square grid"),
    "stars": ("stars", "starfield", "sparks", "galaxy of stars"),
    "waves": ("waves", "ocean", "water", "rolling waves"),
    "fractal": ("fractal", "julia set", "fractal shape", "fractal dust"),
    "ink": ("ink", "marble", "ink in water", "swirling ink"),
    "fire": ("fire", "flames", "burning fire", "bonfire"),
    "aurora": ("aurora", "northern lights", "light curtain", "aurora sky"),
    "spiral": ("spiral", "vortex", "swirl", "twisting spiral"),
    "dots": ("dots", "halftone", "polka dots", "led dots"),
}

#: Mood → the words for it. Each mood changes how the picture is drawn (``drawing.apply_mood``).
MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "dark": ("dark", "dim", "moody"),
    "bright": ("bright", "intense", "vivid"),
    "soft": ("soft", "blurry", "dreamy"),
    "neon": ("neon", "glowing", "electric"),
}

_OPENINGS = (
    "",
    "",
    "",
    "a ",
    "an abstract ",
    "a picture of ",
    "live visuals of ",
    "moving ",
    "abstract ",
    "a scene with ",
)
_FILLERS = (
    "psychedelic",
    "hypnotic",
    "on stage",
    "vj loop",
    "detailed",
    "at night",
    "beautiful",
    "4k",
    "digital art",
    "retro",
)


@dataclass(frozen=True)
class PatternSpec:
    """A picture to draw: a pattern, one or two colour words, at most one mood."""

    pattern: str
    colours: tuple[str, ...]
    mood: str = ""


def choose(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    """Return one of ``items`` at random, each as likely as the others."""
    return items[int(rng.integers(len(items)))]


def write_caption(spec: PatternSpec, rng: np.random.Generator, drop: float = 0.1) -> str:
    """Return a caption of ``spec`` in one of many wordings; empty (unconditional) with probability ``drop``."""
    if rng.random() < drop:
        return ""
    pattern = choose(rng, PATTERN_WORDS[spec.pattern]) if rng.random() < 0.5 else spec.pattern
    colours = list(spec.colours)
    rng.shuffle(colours)
    colour = choose(rng, (" and ", " and ", " ", ", ")).join(colours)
    mood = choose(rng, MOOD_WORDS[spec.mood]) if spec.mood and rng.random() < 0.8 else ""
    wording = rng.random()
    if wording < 0.06:
        text = pattern
    elif wording < 0.10:
        text = colour
    elif wording < 0.55:
        text = " ".join(w for w in (mood, colour, pattern) if w)
    elif wording < 0.85:
        text = " ".join(w for w in (mood, pattern) if w) + choose(rng, (", ", " in ", " of ")) + colour
    else:
        text = f"{colour}, {pattern}" + (f", {mood}" if mood else "")
    text = choose(rng, _OPENINGS) + text
    if rng.random() < 0.2:
        text += ", " + choose(rng, _FILLERS)
    return text
