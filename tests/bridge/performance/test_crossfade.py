"""Crossfades and the beat clock, on a manual clock."""

from __future__ import annotations

import itertools
import threading

import pytest

from bridge.performance.crossfade import CURVES, MAX_MIXTURE_PARTS, MIN_MIXTURE_SHARE, Timing, mix
from engine.shared.parameter import InvalidValue
from tests.bridge.performance.rig import Rig


def test_floats_glide_and_other_values_switch_at_the_switch_point() -> None:
    rig = Rig(strength=0.2)
    rig.crossfader.start({"/strength": 0.6, "/steps": 4, "/mode": "text", "/size": "512x512"}, Timing(4.0, switch=0.75))
    assert rig["/size"] == "512x512", "what the engine loads starts to load at once"
    rig.wait(2.0)
    assert rig["/strength"] == pytest.approx(0.4)
    assert (rig["/steps"], rig["/mode"]) == (2, "image")
    rig.wait(1.0)
    assert (rig["/steps"], rig["/mode"]) == (4, "text")
    assert rig.crossfader.progress == pytest.approx(0.75)
    rig.wait(1.0)
    assert rig["/strength"] == 0.6
    assert rig.crossfader.progress is None
    number = rig.state.number
    rig.wait(1.0)
    assert rig.state.number == number, "a finished fade changes nothing"


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_rises_from_0_to_1(curve: str) -> None:
    values = [CURVES[curve](t / 100) for t in range(101)]
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert all(a < b for a, b in itertools.pairwise(values))


def test_prompts_and_seeds_are_mixed() -> None:
    rig = Rig(prompt="ice", seed=3)
    rig.crossfader.start({"/prompt": "fire", "/seed": 9, "/strength": 1.0}, Timing(2.0))
    rig.wait(0.5)
    (before, first), (after, second) = rig.state.snapshot().mixture
    assert (before["/prompt"], before["/seed"], after["/prompt"], after["/seed"]) == ("ice", 3, "fire", 9)
    assert (first, second) == pytest.approx((0.75, 0.25))
    assert rig["/prompt"] == "ice"
    rig.wait(0.5)
    assert rig["/prompt"] == "fire", "the value switches in the middle while the mixture fades on"
    rig.wait(1.0)
    assert rig.state.snapshot().mixture == ()
    assert (rig["/prompt"], rig["/seed"]) == ("fire", 9)


def test_a_fade_of_weights_alone_needs_no_mixture() -> None:
    rig = Rig()
    rig.crossfader.start({"/prompt/1/weight": 0.0, "/seed/mix": 1.0}, Timing(2.0))
    rig.wait(1.0)
    assert rig.state.snapshot().mixture == ()
    assert rig["/prompt/1/weight"] == pytest.approx(0.5)
    assert rig["/seed/mix"] == pytest.approx(0.5)


def test_an_interrupted_fade_continues_from_the_present_values() -> None:
    rig = Rig(prompt="ice", strength=0.0)
    rig.crossfader.start({"/prompt": "fire", "/strength": 1.0}, Timing(4.0))
    rig.wait(2.0)
    before = rig.state.snapshot()
    rig.crossfader.start({"/prompt": "smoke", "/strength": 0.0}, Timing(4.0))
    now = rig.state.snapshot()
    assert now.real("/strength") == before.real("/strength") == pytest.approx(0.5)
    shares = {str(values["/prompt"]): share for values, share in now.mixture if share}
    assert shares == pytest.approx({"ice": 0.5, "fire": 0.5}), "no jump"
    rig.wait(2.0)
    shares = {str(values["/prompt"]): share for values, share in rig.state.snapshot().mixture}
    assert shares == pytest.approx({"ice": 0.25, "fire": 0.25, "smoke": 0.5})
    assert rig["/strength"] == pytest.approx(0.25)
    rig.wait(2.0)
    assert (rig["/prompt"], rig["/strength"], rig.state.snapshot().mixture) == ("smoke", 0.0, ())


def test_the_mixture_stays_small_however_often_a_fade_is_interrupted() -> None:
    rig = Rig(prompt="0")
    for i in range(1, 30):
        rig.crossfader.start({"/prompt": str(i)}, Timing(4.0))
        rig.wait(1.0)
        mixture = rig.state.snapshot().mixture
        assert len(mixture) <= MAX_MIXTURE_PARTS
        assert sum(share for _, share in mixture) == pytest.approx(1.0)
    assert (
        mix(((mixture[0][0], MIN_MIXTURE_SHARE / 2), (mixture[1][0], 1 - MIN_MIXTURE_SHARE / 2)), mixture[-1][0], 0.5)[
            0
        ][0]
        is mixture[1][0]
    )


def test_a_value_set_during_the_fade_stays() -> None:
    rig = Rig(strength=0.0, prompt="ice")
    rig.crossfader.start({"/strength": 1.0, "/steps": 8, "/prompt": "fire", "/mix": 0.0}, Timing(2.0))
    rig.wait(0.5)
    for name, value in (("/strength", 0.9), ("/steps", 3), ("/prompt", "smoke")):
        rig.state.set(name, [value], "an operator")
    rig.wait(0.5)
    assert rig["/strength"] == 0.9
    assert rig["/mix"] == pytest.approx(0.5), "the other values fade on"
    assert rig.state.snapshot().mixture[-1][0]["/prompt"] == "smoke"
    rig.wait(1.0)
    assert (rig["/strength"], rig["/steps"], rig["/prompt"], rig["/mix"]) == (0.9, 3, "smoke", 0.0)


def test_a_held_fade_continues() -> None:
    for unit in ("seconds", "beats"):
        rig = Rig(strength=0.0, tempo=60.0)
        rig.crossfader.start({"/strength": 1.0}, Timing(4.0, unit))
        rig.wait(1.0)
        rig.crossfader.hold(True)
        rig.wait(10.0)
        assert rig["/strength"] == pytest.approx(0.25)
        rig.crossfader.hold(False)
        rig.wait(1.0)
        assert rig["/strength"] == pytest.approx(0.5), unit
        rig.wait(2.0)
        assert rig["/strength"] == 1.0


def test_a_fade_in_beats_ends_on_the_beat_whatever_the_tempo_does() -> None:
    rig = Rig(strength=0.0, tempo=120.0)
    rig.wait(0.15)  # 0.3 beats
    rig.crossfader.start({"/strength": 1.0}, Timing(4.0, "beats"))
    rig.wait(1.84)
    assert rig.crossfader.progress is not None
    assert rig["/strength"] < 1.0
    rig.wait(0.02)
    assert rig["/strength"] == 1.0
    assert rig.tempo.beats() == pytest.approx(4.02)
    rig.crossfader.start({"/strength": 0.0}, Timing(4.0, "beats"))
    rig.wait(0.98)
    rig.state.set("/tempo", [60.0], "an operator")
    assert rig.tempo.beats() == pytest.approx(5.98), "the beat does not jump"
    rig.wait(2.0)
    assert rig["/strength"] > 0.0
    rig.wait(0.03)
    assert rig["/strength"] == 0.0
    assert rig.tempo.beats() == pytest.approx(8.01)


def test_taps_set_the_tempo_and_the_beat() -> None:
    rig = Rig()
    for _ in range(5):
        rig.clock.now += 0.5 if rig.clock.now > 100.1 else 0.37
        rig.state.set("/tempo/tap", [], "an operator")
    assert rig["/tempo"] == pytest.approx(120.0)
    assert rig.tempo.beats() == pytest.approx(round(rig.tempo.beats()))
    rig.clock.now += 5.0
    rig.state.set("/tempo/tap", [], "an operator")
    assert rig["/tempo"] == pytest.approx(120.0), "one tap after a pause is no tempo"
    rig.clock.now += 0.75
    rig.state.set("/tempo/tap", [], "an operator")
    assert rig["/tempo"] == pytest.approx(80.0)
    rig.clock.now += 0.1
    rig.state.set("/tempo/sync", [], "an operator")
    assert rig.tempo.beats() % 4 == pytest.approx(0.0)


@pytest.mark.parametrize(
    "wrong", [{"length": -1.0}, {"length": 1e6}, {"unit": "bars"}, {"curve": "wobbly"}, {"switch": 2.0}]
)
def test_an_invalid_timing_is_reported(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="a fade"):
        Timing(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [1.0, 4.0])
def test_a_value_set_during_a_tick_wins(at: float) -> None:
    """The crossfader has not been notified of the new value yet, and must not overwrite it."""
    rig = Rig(strength=0.2, steps=2)
    rig.crossfader.start({"/strength": 0.6, "/steps": 4}, Timing(4.0))
    rig.wait(0.5)
    with rig.crossfader._lock:
        threads = [
            threading.Thread(target=rig.state.set, args=(name, [value], "operator"))
            for name, value in (("/strength", 0.9), ("/steps", 7))
        ]
        for thread in threads:
            thread.start()
        while rig["/strength"] != 0.9 or rig["/steps"] != 7:
            pass
        rig.clock.now += at
        rig.crossfader.tick()
        assert (rig["/strength"], rig["/steps"]) == (0.9, 7)
    for thread in threads:
        thread.join()
    rig.wait(4.0, steps=8)
    assert (rig["/strength"], rig["/steps"]) == (0.9, 7)
