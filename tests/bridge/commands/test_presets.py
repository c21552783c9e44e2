"""``phosphene presets``: which model draws the thumbnails, and that every shipped preset has its model and picture."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from bridge.cli import build_parser
from bridge.commands.presets import thumbnail_values
from bridge.performance.presets import PresetLibrary
from engine.models import BUILT_IN


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ((), "pocket"),
        (("--for", "pocket-dit"), "pocket-dit"),
        (("--for", "pocket-dit", "--model", "/elsewhere"), "/elsewhere"),
        (("--for", "turbo"), None),
        (("--for", "turbo", "--model", "stabilityai/sd-turbo"), "stabilityai/sd-turbo"),
    ],
)
def test_presets_of_a_built_in_model_are_drawn_by_it(arguments: tuple[str, ...], model: str | None) -> None:
    options = build_parser(["presets"]).parse_args(["presets", "--thumbnails", "out", *arguments])
    assert thumbnail_values(options).get("/model") == model


def test_every_built_in_model_has_presets_with_different_thumbnails() -> None:
    library = PresetLibrary([])
    built_in = [preset for preset in library.ordered if preset.model in BUILT_IN]
    counts = Counter(preset.model for preset in built_in)
    assert min(counts[name] for name in BUILT_IN) >= 6
    assert len({preset.number for preset in library.ordered}) == len(library.ordered)
    pictures = []
    for preset in built_in:
        data = library.thumbnail(preset.name)
        assert data is not None, preset.name
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture.std((0, 1)).max() > 5, f"{preset.name} is a plain area"
        pictures.append(cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA).astype(int))
    distances = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(distances) > 3, "two presets look alike"
