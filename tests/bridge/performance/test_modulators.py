"""Modulators, on a manual clock."""

from __future__ import annotations

import itertools

import pytest

from bridge.performance.modulators import SHAPES, Modulators
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from engine.shared.table import TABLE
from tests.bridge.performance.rig import Rig


class ModulatorRig(Rig):
    """A rig with modulators, at one beat per second."""

    def __init__(self, **values: Value) -> None:
        super().__init__(tempo=60.0, **values)
        self.modulators = Modulators(self.state, self.tempo)

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
            self.state.set(f"/mod/{number}/{name}", [value], "an operator")

    def at(self, beats: float, name: str) -> float:
        """Return the modulated value ``beats`` after the start."""
        self.clock.now = 100.0 + beats
        self.modulators.tick()
        return self.state.effective().real(name)


def test_a_sine_oscillates_around_the_set_value() -> None:
    rig = ModulatorRig(strength=0.5)
    rig.plug(1, "strength")
    assert [rig.at(b, "/strength") for b in (0, 1, 2, 3, 4)] == pytest.approx([0.5, 0.75, 0.5, 0.25, 0.5])
    assert rig.state.snapshot().real("/strength") == 0.5, "the set value stays"
    rig.state.set("/strength", [0.25], "an operator")
    assert rig.at(1, "/strength") == pytest.approx(0.5)
    rig.state.set("/mod/1/on", [False], "an operator")
    assert rig.at(1, "/strength") == 0.25
    number = rig.state.number
    rig.modulators.tick()
    assert rig.state.number == number, "no modulator is on, so nothing changes"


def test_every_shape_stays_in_its_bounds() -> None:
    for shape, offset in SHAPES.items():
        values = [offset(i / 1000) for i in range(1000)]
        assert min(values) >= (0.0 if shape == "beat" else -1.0)
        assert max(values) <= 1.0
        assert max(values) - min(values) > 0.9, shape
    assert (SHAPES["sine"](0), SHAPES["triangle"](0), SHAPES["beat"](0)) == (0.0, 0.0, 1.0)
    assert set(TABLE["/mod/1/shape"].choices) == {*SHAPES, *Snapshot().modulation.levels, "walk"}


def test_depth_is_a_share_of_the_range_and_the_result_is_clamped() -> None:
    rig = ModulatorRig()
    rig.plug(1, "/guidance", depth=1.0)
    rig.state.set("/guidance", [5.0], "an operator")
    assert rig.at(1, "/guidance") == TABLE["/guidance"].high
    assert rig.at(3, "/guidance") == TABLE["/guidance"].low
    rig.plug(2, "/guidance", depth=-1.0)
    assert rig.at(1, "/guidance") == pytest.approx(5.0), "two modulators of one parameter add up"


def test_phase_rate_and_tempo() -> None:
    rig = ModulatorRig(mix=0.5)
    rig.plug(1, "/mix", shape="saw", depth=0.5, rate=2.0, phase=0.25)
    assert [rig.at(b, "/mix") for b in (0, 0.5, 1.0, 1.499)] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.001)
    rig.state.set("/tempo", [120.0], "an operator")
    before = rig.at(1.499, "/mix")
    assert before == pytest.approx(1.0, abs=0.001), "no jump with the tempo"


def test_a_walk_is_smooth_and_repeatable() -> None:
    one, two = ModulatorRig(mix=0.5), ModulatorRig(mix=0.5)
    for rig in (one, two):
        rig.plug(3, "/mix", shape="walk", depth=0.5, rate=1.0)
    walk = [one.at(i / 50, "/mix") for i in range(400)]
    assert walk == [two.at(i / 50, "/mix") for i in range(400)]
    assert max(abs(a - b) for a, b in itertools.pairwise(walk)) < 0.05
    assert max(walk) - min(walk) > 0.4


def test_an_audio_level_is_followed() -> None:
    rig = ModulatorRig(feedback=0.1)
    rig.plug(1, "feedback", shape="bass", depth=0.5)
    rig.state.set("/audio/bass", [0.8], "an analyser")
    assert rig.at(0, "/feedback") == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", ["nowhere", "prompt", "steps", "model", "mod/2/depth", "tempo"])
def test_a_parameter_that_is_not_continuous_is_refused(wrong: str) -> None:
    rig = ModulatorRig()
    rig.plug(1, wrong)
    assert rig.state.rejected == 1
    assert "is no continuous parameter" in rig.state.last_rejection
    rig.modulators.tick()
    assert dict(rig.state.effective()) == dict(rig.state.snapshot())
