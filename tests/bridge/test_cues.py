"""Presets: those that are shipped are right, and wrong ones say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.cues import load_preset, shipped
from engine.parameters import BadValue


@pytest.mark.parametrize("name", shipped())
def test_shipped_presets_load(name: str) -> None:
    values = load_preset(name)
    assert values["/prompt"]
    assert set(values) > {"/prompt"}


def test_a_file_is_a_preset_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('prompt = "größer"\nstrength = 7\n"guidance/mode" = "full"\n', encoding="utf-8")
    assert load_preset(str(path)) == {"/prompt": "größer", "/strength": 1.0, "/guidance/mode": "full"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('prompt = "', "no TOML"),
        ("colour = 3", "colour"),
        ('strength = "loud"', "number"),
        ("reset = true", "reset"),
        ("strength = [1]", "number"),
    ],
)
def test_a_wrong_preset_says_what_is_wrong(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(BadValue, match=told):
        load_preset(str(path))


def test_a_missing_preset_lists_what_there_is() -> None:
    with pytest.raises(BadValue, match="neon-tunnel"):
        load_preset("nowhere")
