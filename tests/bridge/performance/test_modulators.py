"""Modulators on a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest

from bridge.performance.modulators import FOLLOWED, SHAPES, Modulators
from engine.shared.parameter import Value
from engine.shared.table import TABLE
from tests.bridge.performance.test_crossfade import Desk


class Rack(Desk):
    def __init__(self, **values: Value) -> None:
        super().__init__(tempo=60.0, **values)
        self.modulation = Modulators(self.state, self.tempo)

    def plug(
        self, number: int, to: str, shape: str = "sine", depth: float = 0.25, rate: float = 4.0, phase: float = 0.0
    ) -> None:
        for name, value in (
            ("to", to),
            ("shape", shape),
            ("depth", depth),
            ("rate", rate),
            ("phase", phase),
            ("on", True),
        ):
            self.state.set(f"/mod/{number}/{name}", [value], "a hand")

    def at(self, beats: float, name: str) -> float:
        """The value that is in effect ``beats`` after the start, at a beat a second."""
        self.clock.now = 100.0 + beats
        self.modulation.tick()
        return self.state.effective().real(name)


def test_a_sine_swings_about_what_was_set_and_leaves_it_be() -> None:
    rack = Rack(strength=0.5)
    rack.plug(1, "strength")
    assert [rack.at(b, "/strength") for b in (0, 1, 2, 3, 4)] == pytest.approx([0.5, 0.75, 0.5, 0.25, 0.5])
    assert rack.state.snapshot().real("/strength") == 0.5, "what was set"
    rack.state.set("/strength", [0.25], "a hand")
    assert rack.at(1, "/strength") == pytest.approx(0.5)
    rack.state.set("/mod/1/on", [False], "a hand")
    assert rack.at(1, "/strength") == 0.25
    number = rack.state.number
    rack.modulation.tick()
    assert rack.state.number == number, "nothing on, nothing sent"


def test_every_shape_keeps_its_bounds_and_starts_where_it_says() -> None:
    for shape, swing in SHAPES.items():
        values = [swing(i / 1000) for i in range(1000)]
        assert min(values) >= (0.0 if shape == "beat" else -1.0)
        assert max(values) <= 1.0
        assert max(values) - min(values) > 0.9, shape
    assert (SHAPES["sine"](0), SHAPES["triangle"](0), SHAPES["beat"](0)) == (0.0, 0.0, 1.0)
    assert set(TABLE["/mod/1/shape"].choices) == {*SHAPES, *FOLLOWED, "walk"}


def test_depth_is_of_the_range_and_nothing_leaves_it() -> None:
    rack = Rack()
    rack.plug(1, "/guidance", depth=1.0)
    rack.state.set("/guidance", [5.0], "a hand")
    assert rack.at(1, "/guidance") == TABLE["/guidance"].high
    assert rack.at(3, "/guidance") == TABLE["/guidance"].low
    rack.plug(2, "/guidance", depth=-1.0)
    assert rack.at(1, "/guidance") == pytest.approx(5.0), "two on one add up"


def test_phase_rate_and_tempo() -> None:
    rack = Rack(mix=0.5)
    rack.plug(1, "/mix", shape="saw", depth=0.5, rate=2.0, phase=0.25)
    assert [rack.at(b, "/mix") for b in (0, 0.5, 1.0, 1.499)] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.001)
    rack.state.set("/tempo", [120.0], "a hand")
    before = rack.at(1.499, "/mix")
    assert before == pytest.approx(1.0, abs=0.001), "no jump with the tempo"


def test_a_walk_is_smooth_and_the_same_every_night() -> None:
    one, two = Rack(mix=0.5), Rack(mix=0.5)
    for rack in (one, two):
        rack.plug(3, "/mix", shape="walk", depth=0.5, rate=1.0)
    way = [one.at(i / 50, "/mix") for i in range(400)]
    assert way == [two.at(i / 50, "/mix") for i in range(400)]
    assert max(abs(a - b) for a, b in itertools.pairwise(way)) < 0.05
    assert max(way) - min(way) > 0.4


def test_a_level_from_outside_is_followed() -> None:
    rack = Rack(feedback=0.1)
    rack.plug(1, "feedback", shape="bass", depth=0.5)
    rack.state.set("/audio/bass", [0.8], "an analyser")
    assert rack.at(0, "/feedback") == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", ["nowhere", "prompt", "steps", "model", "mod/2/depth", "tempo"])
def test_what_is_not_continuous_is_refused_and_moves_nothing(wrong: str) -> None:
    rack = Rack()
    rack.plug(1, wrong)
    assert rack.state.rejected == 1
    assert "is no continuous parameter" in rack.state.last_rejection
    rack.modulation.tick()
    assert dict(rack.state.effective()) == dict(rack.state.snapshot())
