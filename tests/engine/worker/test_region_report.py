"""The map of the regions for the panel: only while somebody looks, at a limited rate, and never waited for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from engine.diffusion.region_map import PendingMap
from engine.diffusion.stream import Stream
from engine.shared.frame import Frame
from engine.shared.messages import RegionMap, WatchRegions
from engine.shared.snapshot import Snapshot
from engine.worker.loop import Worker
from engine.worker.region_report import RegionReport
from tests.engine.diffusion.test_regional_sampling import load
from tests.engine.worker.bridge_end import Bridge, failing_call, tick
from tests.waiting import until

VALUES = {"/regions": "change", "/regions/share": 0.25, "/steps": 1, "/strength": 0.5, "/eta": 0.0}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream(load("sd3")[0], 64, 64, blocking=True)


@pytest.fixture
def noise(stream: Stream) -> Iterator[Frame]:
    """Yield frames of noise, each of which changes everything."""
    rng = np.random.default_rng(1)
    stream.restart()
    stream.apply(Snapshot(VALUES))
    return (Frame(rng.integers(0, 255, (64, 64, 4), dtype=np.uint8)) for _ in range(1000))


def test_at_most_ten_maps_a_second_and_none_that_is_no_news(stream: Stream, noise: Iterator[Frame]) -> None:
    clock = Clock()
    report = RegionReport(clock)
    times = []
    for _ in range(64):  # a second
        stream.step([next(noise)])
        if report.poll(stream.regions, is_watched=True) is not None:
            times.append(clock.now)
        clock.now += 1 / 64
    assert min(np.diff(times)) >= 0.1
    assert 8 <= len(times) <= 10
    clock.now += 1.0
    last = report.poll(stream.regions, True)
    clock.now += 1.0
    assert report.poll(stream.regions, True) is None, f"the same as {last}"


def test_the_map_holds_a_byte_for_each_token(stream: Stream, noise: Iterator[Frame]) -> None:
    for _ in range(3):
        stream.step([next(noise)])
    region_map = RegionReport(Clock()).poll(stream.regions, True)
    assert region_map is not None
    assert region_map.rows * region_map.columns == len(region_map.cells) == stream.regions.tokens
    assert region_map.cells.count(255) == stream.regions.tokens // 4
    assert region_map.cells.count(0) == stream.regions.tokens * 3 // 4


def test_nothing_is_read_where_nobody_looks(stream: Stream, noise: Iterator[Frame]) -> None:
    regions = stream.regions
    stream.step([next(noise)])
    report = RegionReport(Clock())
    begin_map, regions.begin_map = regions.begin_map, failing_call(AssertionError("read"))  # type: ignore[method-assign]
    try:
        assert report.poll(regions, is_watched=False) is None
    finally:
        regions.begin_map = begin_map  # type: ignore[method-assign]
    assert report.poll(regions, True) is not None
    assert report.poll(regions, False) is None
    assert report.poll(regions, True) is None, "too early"


def test_a_map_without_rows_ends_the_reports(stream: Stream, noise: Iterator[Frame]) -> None:
    clock = Clock()
    report = RegionReport(clock)
    stream.step([next(noise)])
    assert report.poll(stream.regions, True) is not None
    stream.apply(Snapshot(VALUES | {"/regions": "off"}))
    clock.now += 0.2
    assert report.poll(stream.regions, True) == RegionMap()
    clock.now += 0.2
    assert report.poll(stream.regions, True) is None


def test_a_map_that_a_gpu_still_copies_is_sent_at_a_later_tick(
    stream: Stream, noise: Iterator[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RegionReport(Clock())
    for _ in range(2):
        stream.step([next(noise)])
    expected = stream.regions.read_map().tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(PendingMap, "done", lambda _map: False)
        patch.setattr(PendingMap, "result", failing_call(AssertionError("the frame loop waited")))
        assert [report.poll(stream.regions, True) for _ in range(3)] == [None] * 3
    stream.step([next(noise)])
    region_map = report.poll(stream.regions, True)
    assert region_map is not None
    assert region_map.cells == expected, "as it was when the copy began"


def test_a_map_that_cannot_be_read_ends_nothing(
    stream: Stream, noise: Iterator[Frame], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = RegionReport(Clock())
    stream.step([next(noise)])
    monkeypatch.setattr(PendingMap, "result", failing_call(RuntimeError("no such event")))
    assert report.poll(stream.regions, True) is None
    assert "no such event" in caplog.text


def test_the_worker_sends_maps_from_the_request_to_its_end(engine: tuple[Worker, Bridge]) -> None:
    worker, bridge = engine
    tick(worker)
    worker._report()
    assert bridge.messages_of(RegionMap) == []
    bridge.pipe.send(WatchRegions(True))
    until(lambda: worker.bridge.watches_regions, 5, "the request")
    worker._report()
    assert bridge.messages_of(RegionMap) == [RegionMap()], "this model computes everything"
    assert worker.bridge.newest() is None, "it is no snapshot"
    bridge.pipe.send(WatchRegions(False))
    until(lambda: not worker.bridge.watches_regions, 5, "the end")
    worker._report()
    assert len(bridge.messages_of(RegionMap)) == 1
