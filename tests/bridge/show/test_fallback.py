"""What is shown while the engine is away."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bridge.control.state import State
from bridge.show.fallback import FADE, PATIENCE, Fallback, wanted
from engine.shared.frame import Frame, Pixels

PICTURE = np.full((32, 48, 4), (200, 100, 50, 255), np.uint8)
GIVEN = Frame(np.full((20, 30, 4), (10, 220, 30, 255), np.uint8))


def away(state: State, seconds: float) -> Fallback:
    """The fallback after the engine has been away for so long, looked at 60 times a second."""
    made = Fallback(state)
    for tick in range(int(seconds * 60) + 1):
        made.step(100.0 + tick / 60, wanted(state.snapshot(), 9.0 if tick > 0 else 0.0, 0.0))
    return made


def shown(made: Fallback, state: State) -> Pixels:
    return made.mixed(PICTURE, state.snapshot(), GIVEN)


@pytest.fixture
def still(tmp_path: Path) -> str:
    path = tmp_path / "still.png"
    cv2.imwrite(str(path), np.full((64, 64, 3), (255, 0, 128), np.uint8))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "colour"),
    [
        ("hold", (200, 100, 50, 255)),
        ("input", (10, 220, 30, 255)),
        ("black", (0, 0, 0, 255)),
        ("still", (128, 0, 255, 255)),
    ],
)
def test_each_kind(kind: str, colour: tuple[int, ...], still: str) -> None:
    state = State({"/fallback": kind, "/fallback/still": still})
    found = shown(away(state, 1.0), state)
    assert found.shape == PICTURE.shape
    assert np.abs(found.reshape(-1, 4).astype(int) - colour).max() <= 1


def test_it_is_faded_into_and_out_of() -> None:
    state = State({"/fallback": "black"})
    made = away(state, FADE / 2)
    assert shown(made, state)[0, 0, 0] == pytest.approx(100, abs=10)
    made = away(state, 1.0)
    levels = []
    for tick in range(60):
        seen = made.step(102.0 + tick / 60, "hold")
        levels.append(int(shown(made, state)[0, 0, 0]))
    assert levels == sorted(levels)
    assert levels[0] < 70
    assert levels[-1] == 200
    assert not seen


def test_a_still_that_is_not_there_is_black_and_told(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    state = State({"/fallback": "still"})
    made = away(state, 1.0)
    for name in (str(tmp_path / "nothing.png"), str(tmp_path / "text.png"), str(tmp_path)):
        refused = state.rejected
        state.set("/fallback/still", [name], "test")
        assert state.rejected == refused + 1
        assert "/fallback/still" in state.last_rejection
    assert shown(made, state)[0, 0].tolist() == [0, 0, 0, 255]


def test_what_is_wanted_when_the_engine_or_the_input_is_away() -> None:
    state = State({"/fallback": "input", "/fallback/source": "black"})
    long, now = PATIENCE + 1, 0.0
    assert wanted(state.snapshot(), now, now) == "hold"
    assert wanted(state.snapshot(), long, now) == "input"
    assert wanted(state.snapshot(), now, long) == "black"
    assert wanted(state.snapshot(), long, long) == "input", "without an engine no input is transformed"
    state.put({"/mode": "text"})
    assert wanted(state.snapshot(), now, long) == "hold", "text mode needs no input"
    state.put({"/mode": "image", "/fallback/source": "hold"})
    assert wanted(state.snapshot(), now, long) == "hold"
