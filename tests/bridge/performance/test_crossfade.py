"""Crossfades and the beat clock, on a clock of the test's own."""

from __future__ import annotations

import itertools
import threading

import pytest

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import CURVES, LEAST, MOST, Crossfader, Timing, mixed
from engine.shared.parameter import InvalidValue, Value


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A state with a fader on a clock that stands until it is moved."""

    def __init__(self, **values: Value) -> None:
        self.clock = Clock()
        self.state = State({"/" + name.replace("_", "/"): value for name, value in values.items()})
        self.tempo = Tempo(self.state, self.clock)
        self.fader = Crossfader(self.state, self.tempo, self.clock)

    def wait(self, seconds: float, steps: int = 1) -> None:
        for _ in range(steps):
            self.clock.now += seconds / steps
            self.fader.tick()

    def __getitem__(self, name: str) -> Value:
        return self.state.snapshot()[name]


def test_numbers_glide_and_all_else_switches_at_its_point() -> None:
    desk = Desk(strength=0.2)
    desk.fader.start({"/strength": 0.6, "/steps": 4, "/mode": "text", "/size": "512x512"}, Timing(4.0, switch=0.75))
    assert desk["/size"] == "512x512", "what is loaded begins to load at once"
    desk.wait(2.0)
    assert desk["/strength"] == pytest.approx(0.4)
    assert (desk["/steps"], desk["/mode"]) == (2, "image")
    desk.wait(1.0)
    assert (desk["/steps"], desk["/mode"]) == (4, "text")
    assert desk.fader.share == pytest.approx(0.75)
    desk.wait(1.0)
    assert desk["/strength"] == 0.6
    assert desk.fader.share is None
    number = desk.state.number
    desk.wait(1.0)
    assert desk.state.number == number, "what is over changes nothing"


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_runs_from_one_end_to_the_other_and_never_back(curve: str) -> None:
    values = [CURVES[curve](t / 100) for t in range(101)]
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert all(a < b for a, b in itertools.pairwise(values))


def test_prompts_and_seeds_are_mixed_by_their_meaning() -> None:
    desk = Desk(prompt="ice", seed=3)
    desk.fader.start({"/prompt": "fire", "/seed": 9, "/strength": 1.0}, Timing(2.0))
    desk.wait(0.5)
    (before, first), (after, second) = desk.state.snapshot().mixture
    assert (before["/prompt"], before["/seed"], after["/prompt"], after["/seed"]) == ("ice", 3, "fire", 9)
    assert (first, second) == pytest.approx((0.75, 0.25))
    assert desk["/prompt"] == "ice"
    desk.wait(0.5)
    assert desk["/prompt"] == "fire", "what is shown switches in the middle, what is seen goes on"
    desk.wait(1.0)
    assert desk.state.snapshot().mixture == ()
    assert (desk["/prompt"], desk["/seed"]) == ("fire", 9)


def test_a_fade_of_weights_alone_needs_no_mixture() -> None:
    desk = Desk()
    desk.fader.start({"/prompt/1/weight": 0.0, "/seed/mix": 1.0}, Timing(2.0))
    desk.wait(1.0)
    assert desk.state.snapshot().mixture == ()
    assert desk["/prompt/1/weight"] == pytest.approx(0.5)
    assert desk["/seed/mix"] == pytest.approx(0.5)


def test_a_fade_that_is_interrupted_goes_on_from_where_it_stands() -> None:
    desk = Desk(prompt="ice", strength=0.0)
    desk.fader.start({"/prompt": "fire", "/strength": 1.0}, Timing(4.0))
    desk.wait(2.0)
    seen = desk.state.snapshot()
    desk.fader.start({"/prompt": "smoke", "/strength": 0.0}, Timing(4.0))
    now = desk.state.snapshot()
    assert now.real("/strength") == seen.real("/strength") == pytest.approx(0.5)
    shares = {str(look["/prompt"]): share for look, share in now.mixture if share}
    assert shares == pytest.approx({"ice": 0.5, "fire": 0.5}), "no jump"
    desk.wait(2.0)
    shares = {str(look["/prompt"]): share for look, share in desk.state.snapshot().mixture}
    assert shares == pytest.approx({"ice": 0.25, "fire": 0.25, "smoke": 0.5})
    assert desk["/strength"] == pytest.approx(0.25)
    desk.wait(2.0)
    assert (desk["/prompt"], desk["/strength"], desk.state.snapshot().mixture) == ("smoke", 0.0, ())


def test_however_often_it_is_interrupted_few_looks_are_mixed() -> None:
    desk = Desk(prompt="0")
    for i in range(1, 30):
        desk.fader.start({"/prompt": str(i)}, Timing(4.0))
        desk.wait(1.0)
        mixture = desk.state.snapshot().mixture
        assert len(mixture) <= MOST
        assert sum(share for _, share in mixture) == pytest.approx(1.0)
    assert (
        mixed(((mixture[0][0], LEAST / 2), (mixture[1][0], 1 - LEAST / 2)), mixture[-1][0], 0.5)[0][0] is mixture[1][0]
    )


def test_what_is_set_by_hand_stays() -> None:
    desk = Desk(strength=0.0, prompt="ice")
    desk.fader.start({"/strength": 1.0, "/steps": 8, "/prompt": "fire", "/mix": 0.0}, Timing(2.0))
    desk.wait(0.5)
    for name, value in (("/strength", 0.9), ("/steps", 3), ("/prompt", "smoke")):
        desk.state.set(name, [value], "a hand")
    desk.wait(0.5)
    assert desk["/strength"] == 0.9
    assert desk["/mix"] == pytest.approx(0.5), "the rest goes on"
    assert desk.state.snapshot().mixture[-1][0]["/prompt"] == "smoke"
    desk.wait(1.0)
    assert (desk["/strength"], desk["/steps"], desk["/prompt"], desk["/mix"]) == (0.9, 3, "smoke", 0.0)


def test_a_fade_is_held_and_goes_on() -> None:
    for unit in ("seconds", "beats"):
        desk = Desk(strength=0.0, tempo=60.0)
        desk.fader.start({"/strength": 1.0}, Timing(4.0, unit))
        desk.wait(1.0)
        desk.fader.hold(True)
        desk.wait(10.0)
        assert desk["/strength"] == pytest.approx(0.25)
        desk.fader.hold(False)
        desk.wait(1.0)
        assert desk["/strength"] == pytest.approx(0.5), unit
        desk.wait(2.0)
        assert desk["/strength"] == 1.0


def test_a_fade_in_beats_ends_on_the_beat_whatever_the_tempo_does() -> None:
    desk = Desk(strength=0.0, tempo=120.0)
    desk.wait(0.15)  # 0.3 beats
    desk.fader.start({"/strength": 1.0}, Timing(4.0, "beats"))
    desk.wait(1.84)
    assert desk.fader.share is not None
    assert desk["/strength"] < 1.0
    desk.wait(0.02)
    assert desk["/strength"] == 1.0
    assert desk.tempo.beats() == pytest.approx(4.02)
    desk.fader.start({"/strength": 0.0}, Timing(4.0, "beats"))
    desk.wait(0.98)
    desk.state.set("/tempo", [60.0], "a hand")
    assert desk.tempo.beats() == pytest.approx(5.98), "no beat is lost or won"
    desk.wait(2.0)
    assert desk["/strength"] > 0.0
    desk.wait(0.03)
    assert desk["/strength"] == 0.0
    assert desk.tempo.beats() == pytest.approx(8.01)


def test_taps_set_the_tempo_and_the_beat() -> None:
    desk = Desk()
    for _ in range(5):
        desk.clock.now += 0.5 if desk.clock.now > 100.1 else 0.37
        desk.state.set("/tempo/tap", [], "a foot")
    assert desk["/tempo"] == pytest.approx(120.0)
    assert desk.tempo.beats() == pytest.approx(round(desk.tempo.beats()))
    desk.clock.now += 5.0
    desk.state.set("/tempo/tap", [], "a foot")
    assert desk["/tempo"] == pytest.approx(120.0), "one tap after a pause is no tempo"
    desk.clock.now += 0.75
    desk.state.set("/tempo/tap", [], "a foot")
    assert desk["/tempo"] == pytest.approx(80.0)
    desk.clock.now += 0.1
    desk.state.set("/tempo/sync", [], "a foot")
    assert desk.tempo.beats() % 4 == pytest.approx(0.0)


@pytest.mark.parametrize(
    "wrong", [{"length": -1.0}, {"length": 1e6}, {"unit": "bars"}, {"curve": "wobbly"}, {"switch": 2.0}]
)
def test_a_timing_that_cannot_be_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="a fade"):
        Timing(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [1.0, 4.0])
def test_a_hand_that_is_quicker_than_the_fade_wins(at: float) -> None:
    """A value is set while the fade works out its own: the fader has not heard of it yet, and must not set it back."""
    desk = Desk(strength=0.2, steps=2)
    desk.fader.start({"/strength": 0.6, "/steps": 4}, Timing(4.0))
    desk.wait(0.5)
    with desk.fader._lock:
        hands = [
            threading.Thread(target=desk.state.set, args=(name, [value], "hand"))
            for name, value in (("/strength", 0.9), ("/steps", 7))
        ]
        for hand in hands:
            hand.start()
        while desk["/strength"] != 0.9 or desk["/steps"] != 7:
            pass
        desk.clock.now += at
        desk.fader.tick()
        assert (desk["/strength"], desk["/steps"]) == (0.9, 7)
    for hand in hands:
        hand.join()
    desk.wait(4.0, steps=8)
    assert (desk["/strength"], desk["/steps"]) == (0.9, 7)
