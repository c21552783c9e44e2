"""Load tests: frames stay even, control latency low, the last value is set. Soak tests: drifts are detected."""

from __future__ import annotations

import pytest

from bridge.stress.load import run_load
from bridge.stress.senders import SENDERS
from bridge.stress.soak import WARM_UP_CYCLES, Sample, check_samples, draw_changes, theil_sen_slope
from engine.shared.options import EngineOptions

pytestmark = pytest.mark.slow


def test_no_load_delays_frames_or_control(capsys: pytest.CaptureFixture[str]) -> None:
    passed = run_load(EngineOptions("cpu"), {"/steps": 1}, seconds=1.0)
    table = capsys.readouterr().out
    print(table)
    assert table.count("| set |") == len(SENDERS)
    assert passed, table


def soak_samples(engine: float = 0.0, bridge: float = 0.0, p99: float = 0.0, threads: int = 0) -> list[Sample]:
    """Twenty cycles, with a kill after twelve. Memory grows by so much per hour, the latency by its fraction in all."""
    samples = []
    for i in range(20):
        hours, number = i / 60, 1 + (i >= 12)
        warming_up = i - (12 if number == 2 else 0) < WARM_UP_CYCLES
        samples.append(
            Sample(
                hours=hours,
                engine_number=number,
                bridge_memory=200 + bridge * hours,
                engine_memory=500 * number + engine * hours - (30.0 if warming_up else 0.0),
                handles=40,
                threads=20 + threads * (i == 19),
                fps=15,
                p99=100.0 * (1 + p99 * i / 19),
                gap=85,
            )
        )
    return samples


@pytest.mark.parametrize(
    ("samples", "failed"),
    [
        (soak_samples(), ""),
        (soak_samples(engine=5.0), "memory of the engine"),
        (soak_samples(bridge=5.0), "memory of the bridge"),
        (soak_samples(p99=0.5), "latency"),
        (soak_samples(threads=9), "threads"),
    ],
)
def test_a_soak_test_reports_what_grows(samples: list[Sample], failed: str, capsys: pytest.CaptureFixture[str]) -> None:
    passed = check_samples(samples, 1.0, 0.1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert passed == (not failed)
    assert len(lines) == (1 if failed else 0)
    assert all(failed in line for line in lines)


def test_a_soak_test_that_is_too_short_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert not check_samples(soak_samples()[:WARM_UP_CYCLES], 1.0, 0.1)
    assert "too short" in capsys.readouterr().out


def test_slopes_are_those_within_a_group() -> None:
    points = [(0.0, 1, 5.0), (1.0, 1, 7.0), (2.0, 1, 9.0), (3.0, 2, 100.0), (4.0, 2, 102.0)]
    assert theil_sen_slope(points) == pytest.approx(2.0)
    assert theil_sen_slope(points[:1]) == 0.0


def test_every_cycle_is_the_same() -> None:
    assert draw_changes() == draw_changes()
    assert len({name for change in draw_changes() for name in change}) > 10
