"""What Prometheus reads, and whether the show is healthy."""

from __future__ import annotations

import os
import re
from typing import Any

import psutil
import pytest

from bridge.panel.metrics import NAMES, health, metrics

STATUS: dict[str, Any] = {
    "fps": 24.5, "latency_ms": 41.0, "frames": 100, "source_frames": 200, "sinks": {'file:a "b"\\c.mp4': 90, "null:": 100},
    "engine": {"skipped": 3, "dropped": 4}, "engine_ready": True, "engine_starts": 2, "engine_pid": os.getpid(), "errors": 1,
    "osc_messages": 12, "refused": 5, "last_error": "",
}  # fmt: skip
LINE = re.compile(r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?P<labels>\{[a-z]+="(?:[^"\\]|\\.)*"\})? (?P<value>[0-9.e+-]+)')


def read(text: str) -> dict[str, float]:
    """Prometheus' text format, as its specification has it."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "gauge")
            assert name not in typed
            assert (kind == "counter") == name.endswith("_total"), name
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            assert match["name"] in typed
            found[match["name"] + (match["labels"] or "")] = float(match["value"])
    return found


def test_every_value_is_there_and_prometheus_can_read_it() -> None:
    found = read(metrics(STATUS))
    assert {name.split("{")[0] for name in found} == {f"phosphene_{name}" for name in NAMES}
    assert found["phosphene_frames_per_second"] == 24.5
    assert found["phosphene_latency_seconds"] == 0.041
    assert found['phosphene_sink_frames_total{sink="null:"}'] == 100
    assert found['phosphene_sink_frames_total{sink="file:a \\"b\\"\\\\c.mp4"}'] == 90
    assert found['phosphene_resident_memory_bytes{process="engine"}'] == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.1
    )


def test_an_engine_that_is_gone_leaves_its_lines_out() -> None:
    found = read(metrics(STATUS | {"engine_pid": None, "engine": {}, "engine_ready": False}))
    assert found["phosphene_engine_ready"] == 0
    assert not [name for name in found if 'process="engine"' in name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"engine": {}, "engine_ready": False}, "the engine has not started yet"),
        ({"engine_ready": False}, "the engine is starting"),
        ({"frames": 0}, "no frame came out yet"),
    ],
)
def test_health(change: dict[str, Any], reason: str) -> None:
    healthy, told = health(STATUS | change)
    assert (healthy, told["reason"]) == (not reason, reason)
