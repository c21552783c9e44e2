"""More than any desk sends, for a few seconds each: frames stay even, a hand is felt, the last value is set. And a soak judges right."""

from __future__ import annotations

import argparse

import pytest

from bridge.stress import soak
from bridge.stress.load import FLOODS, floods
from bridge.stress.soak import WARM_UP, Look, script, slope

OPTIONS = {"device": "cpu", "offline": False, "allow_pickle": False, "hooks": "", "accelerate": "eager"}


def test_no_flood_is_felt(capsys: pytest.CaptureFixture[str]) -> None:
    code = floods(argparse.Namespace(seconds=1.0, **OPTIONS), {"/steps": 1})
    told = capsys.readouterr().out
    print(told)
    assert told.count("| set |") == len(FLOODS)
    assert code == 0, told


def looks(engine: float = 0.0, bridge: float = 0.0, p99: float = 0.0, threads: int = 0) -> list[Look]:
    """Twenty cycles, with a kill after twelve, that grow by so much an hour; the latency by its share in all."""
    made = []
    for i in range(20):
        hours, life = i / 60, 1 + (i >= 12)
        warm = 30.0 if i - (12 if life == 2 else 0) < WARM_UP else 0.0
        late = 100.0 * (1 + p99 * i / 19)
        made.append(
            Look(
                hours,
                life,
                200 + bridge * hours,
                500 * life + engine * hours - warm,
                40,
                20 + threads * (i == 19),
                15,
                late,
                85,
            )
        )
    return made


@pytest.mark.parametrize(
    ("seen", "missed"),
    [
        (looks(), ""),
        (looks(engine=5.0), "memory of the engine"),
        (looks(bridge=5.0), "memory of the bridge"),
        (looks(p99=0.5), "latency"),
        (looks(threads=9), "threads"),
    ],
)
def test_a_soak_tells_what_grows(seen: list[Look], missed: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = soak._judged(seen, 1.0, 0.1)
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED")]
    assert code == (1 if missed else 0)
    assert len(wrong) == (1 if missed else 0)
    assert all(missed in line for line in wrong)


def test_too_short_a_soak_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak._judged(looks()[:WARM_UP], 1.0, 0.1) == 1
    assert "too short" in capsys.readouterr().out


def test_slopes_are_those_within_a_life() -> None:
    assert slope([(0.0, 1, 5.0), (1.0, 1, 7.0), (2.0, 1, 9.0), (3.0, 2, 100.0), (4.0, 2, 102.0)]) == pytest.approx(2.0)
    assert slope([(0.0, 1, 5.0)]) == 0.0


def test_every_cycle_is_the_same() -> None:
    assert script() == script()
    assert len({name for change in script() for name in change}) > 10
