"""Each fault once: no value is lost, the output has no gap, and the show is live again soon."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from bridge.errors import UserError
from bridge.stress.faults import FAULTS, Fault, find_faults, try_fault
from bridge.stress.harness import StressShow
from engine.shared.options import EngineOptions
from engine.shared.table import TABLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def show() -> Iterator[StressShow]:
    with StressShow(EngineOptions("cpu"), {}) as show:
        yield show
    assert not [name for name in TABLE if name.startswith("/hook/")], "the fault parameter goes with the test"


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS])
def test_a_show_survives(show: StressShow, fault: Fault) -> None:
    if fault.posix and sys.platform == "win32":
        pytest.xfail("signals and limits of POSIX")
    outcome = try_fault(show, fault)
    print(f"{fault.name}: longest gap {outcome.gap * 1000:.0f} ms, live again after {outcome.recovery:.1f} s")
    assert outcome.gap <= 0.1 + 0.05
    assert outcome.recovery < 8.0
    assert not outcome.lost


def test_a_recording_that_was_cut_off_plays_and_a_new_one_starts(show: StressShow) -> None:
    import av

    (fault,) = find_faults(["disk full while recording"])
    if fault.posix and sys.platform == "win32":
        pytest.xfail("limits of POSIX")
    stops = show.recording.stops
    try_fault(show, fault)
    assert show.recording.stops == stops + 1
    folder = show.recording._path.parent
    files = sorted(folder.glob("show*.mp4"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) >= 2
    with av.open(str(files[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10, "what was written before the disk was full"


def test_faults_are_selected_by_name() -> None:
    assert find_faults(None) == list(FAULTS)
    assert [fault.name for fault in find_faults(["engine and its reserve killed"])] == ["engine and standby killed"]
    with pytest.raises(UserError, match="lightning"):
        find_faults(["lightning"])
