"""What a drawn picture is called: plain, varied words for a family, its colours and its mood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Family → the words people use for it; the first is the family's own name.
WORDS: dict[str, tuple[str, ...]] = {
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

#: Mood → the words for it. Each mood changes how the picture is drawn (``data.draw``).
MOODS: dict[str, tuple[str, ...]] = {
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
class Look:
    """What is drawn: a family, one or two colour words, at most one mood."""

    family: str
    colours: tuple[str, ...]
    mood: str = ""


def choice(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    """One of ``items``, drawn evenly."""
    return items[int(rng.integers(len(items)))]


def caption(look: Look, rng: np.random.Generator, drop: float = 0.1) -> str:
    """A caption for ``look`` in one of many wordings; empty with probability ``drop`` (the unconditional case)."""
    if rng.random() < drop:
        return ""
    family = choice(rng, WORDS[look.family]) if rng.random() < 0.5 else look.family
    colours = list(look.colours)
    rng.shuffle(colours)
    colour = choice(rng, (" and ", " and ", " ", ", ")).join(colours)
    mood = choice(rng, MOODS[look.mood]) if look.mood and rng.random() < 0.8 else ""
    part = rng.random()
    if part < 0.06:
        text = family
    elif part < 0.10:
        text = colour
    elif part < 0.55:
        text = " ".join(w for w in (mood, colour, family) if w)
    elif part < 0.85:
        text = " ".join(w for w in (mood, family) if w) + choice(rng, (", ", " in ", " of ")) + colour
    else:
        text = f"{colour}, {family}" + (f", {mood}" if mood else "")
    text = choice(rng, _OPENINGS) + text
    if rng.random() < 0.2:
        text += ", " + choice(rng, _FILLERS)
    return text
