"""Each way in which shows break, once: nothing is lost, the output goes on, and it is live again soon."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from bridge.stress.faults import FAULTS, Fault, tried
from bridge.stress.harness import StressShow
from engine.shared.options import EngineOptions
from engine.shared.table import declare


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[StressShow]:
    with StressShow(EngineOptions("cpu"), {}) as made:
        yield made
    declare([])


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS])
def test_a_show_survives(rehearsal: StressShow, fault: Fault) -> None:
    if fault.posix and sys.platform == "win32":
        pytest.xfail("signals and limits of POSIX")
    found = tried(rehearsal, fault)
    print(f"{fault.name}: longest gap {found.gap * 1000:.0f} ms, live again after {found.back:.1f} s")
    assert found.gap <= 0.1 + 0.05
    assert found.back < 8.0
    assert not found.lost


def test_a_recording_that_was_cut_off_plays_and_another_goes_on(rehearsal: StressShow) -> None:
    import av

    fault = next(fault for fault in FAULTS if fault.name == "disk full while recording")
    if fault.posix and sys.platform == "win32":
        pytest.xfail("limits of POSIX")
    stops = rehearsal.recording.stops
    tried(rehearsal, fault)
    assert rehearsal.recording.stops == stops + 1
    folder = rehearsal.recording._path.parent
    files = sorted(folder.glob("show*.mp4"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) >= 2
    with av.open(str(files[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10, "what was written before the disk was full"
