"""The fallback: what is shown while the engine or the input is away."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bridge.control.state import State
from bridge.show.fallback import FADE_SECONDS, TIMEOUT_SECONDS, Fallback, choose_fallback, read_still
from engine.shared.frame import MAX_SIDE, Frame, Pixels

PICTURE = np.full((32, 48, 4), (200, 100, 50, 255), np.uint8)
INPUT = Frame(np.full((20, 30, 4), (10, 220, 30, 255), np.uint8))


def run_silent(state: State, seconds: float) -> Fallback:
    """Return a fallback after the engine has been silent for ``seconds``, stepped 60 times a second."""
    fallback = Fallback(state)
    for tick in range(int(seconds * 60) + 1):
        fallback.step(100.0 + tick / 60, choose_fallback(state.snapshot(), 9.0 if tick > 0 else 0.0, 0.0))
    return fallback


def mix(fallback: Fallback, state: State) -> Pixels:
    return fallback.mix(PICTURE, state.snapshot(), INPUT)


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
def test_each_kind_has_its_picture(kind: str, colour: tuple[int, ...], still: str) -> None:
    state = State({"/fallback": kind, "/fallback/still": still})
    picture = mix(run_silent(state, 1.0), state)
    assert picture.shape == PICTURE.shape
    assert np.abs(picture.reshape(-1, 4).astype(int) - colour).max() <= 1


def test_it_fades_in_and_out() -> None:
    state = State({"/fallback": "black"})
    fallback = run_silent(state, FADE_SECONDS / 2)
    assert mix(fallback, state)[0, 0, 0] == pytest.approx(100, abs=10)
    fallback = run_silent(state, 1.0)
    levels = []
    for tick in range(60):
        visible = fallback.step(102.0 + tick / 60, "hold")
        levels.append(int(mix(fallback, state)[0, 0, 0]))
    assert levels == sorted(levels)
    assert levels[0] < 70
    assert levels[-1] == 200
    assert not visible


def test_a_still_that_cannot_be_read_is_black_and_reported(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    state = State({"/fallback": "still"})
    fallback = run_silent(state, 1.0)
    for name in (str(tmp_path / "nothing.png"), str(tmp_path / "text.png"), str(tmp_path)):
        rejected = state.rejected
        state.set("/fallback/still", [name], "test")
        assert state.rejected == rejected + 1
        assert "/fallback/still" in state.last_rejection
    assert mix(fallback, state)[0, 0].tolist() == [0, 0, 0, 255]


def test_the_choice_for_a_silent_engine_or_source() -> None:
    state = State({"/fallback": "input", "/fallback/source": "black"})
    silent, live = TIMEOUT_SECONDS + 1, 0.0
    assert choose_fallback(state.snapshot(), live, live) == "hold"
    assert choose_fallback(state.snapshot(), silent, live) == "input"
    assert choose_fallback(state.snapshot(), live, silent) == "black"
    assert choose_fallback(state.snapshot(), silent, silent) == "input", "without an engine no input is transformed"
    state.put({"/mode": "text"})
    assert choose_fallback(state.snapshot(), live, silent) == "hold", "text mode needs no input"
    state.put({"/mode": "image", "/fallback/source": "hold"})
    assert choose_fallback(state.snapshot(), live, silent) == "hold"


def test_a_large_still_is_reduced_once(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.full((100, 3 * MAX_SIDE, 3), (255, 0, 128), np.uint8))
    still = read_still(path)
    assert still.shape == (33, MAX_SIDE, 4)
    assert np.abs(still.reshape(-1, 4).astype(int) - (128, 0, 255, 255)).max() <= 1


def test_a_still_of_another_user_or_with_a_null_is_one_line() -> None:
    state = State()
    fallback = Fallback(state)
    for name in ("~nobody-of-this-name/still.png", "a\0b.png"):
        state.set("/fallback/still", [name], "test")
        assert "/fallback/still" in state.last_rejection
    assert state.rejected == 2
    assert fallback.step(1.0, "hold") is False
