"""Prometheus metrics, read by a parser written from the format's specification, and the health report."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import psutil
import pytest

from bridge.panel import metrics as module
from bridge.panel.metrics import health, metrics
from bridge.show.status import ShowStatus
from engine.shared.messages import EngineStatus

STATUS = ShowStatus(
    fps=24.5,
    latency_ms=41.0,
    frames=100,
    gap_ms=80.0,
    gaps=1,
    engine=EngineStatus(
        "pocket",
        "cpu",
        "float32",
        "256x256",
        {},
        skipped=3,
        dropped=4,
        regions=True,
        region_share=0.25,
        tokens_computed=3_000_001,
        tokens_skipped=9_000_003,
        still=2,
    ),
    engine_pid=os.getpid(),
    engine_ready=True,
    engine_starts=2,
    errors=1,
    last_error="",
    source="pattern:plasma",
    source_frames=200,
    second="",
    second_frames=0,
    sinks={'file:a "b"\\c.mp4': 90, "null:": 100},
    osc_messages=12,
    rejected=5,
    last_rejection="",
    snapshot=1,
    parameters={},
    show={},
)
NAMES = {
    "frames_per_second", "latency_seconds", "output_gap_seconds", "output_gaps_total", "frames_total",
    "source_frames_total", "sink_frames_total",
    "skipped_total", "still_total", "dropped_total", "tokens_computed_total", "tokens_skipped_total", "region_share",
    "engine_ready", "engine_starts_total", "errors_total", "osc_messages_total",
    "refused_total", "resident_memory_bytes", "threads", "open_handles",
}  # fmt: skip
LINE = re.compile(r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?P<labels>\{[a-z]+="(?:[^"\\]|\\.)*"\})? (?P<value>[0-9.e+-]+)')


def read(data: bytes) -> dict[str, float]:
    """Return the samples of Prometheus' text format."""
    text = data.decode()
    assert text.endswith("\n")
    samples: dict[str, float] = {}
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
            samples[match["name"] + (match["labels"] or "")] = float(match["value"])
    return samples


def test_every_value_is_there_and_prometheus_can_read_it() -> None:
    samples = read(metrics(STATUS))
    assert {name.split("{")[0] for name in samples} == {f"phosphene_{name}" for name in NAMES}
    assert samples["phosphene_frames_per_second"] == 24.5
    assert samples["phosphene_latency_seconds"] == 0.041
    assert samples['phosphene_sink_frames_total{sink="null:"}'] == 100
    assert samples['phosphene_sink_frames_total{sink="file:a \\"b\\"\\\\c.mp4"}'] == 90
    assert samples["phosphene_tokens_computed_total"] == 3_000_001
    assert samples["phosphene_tokens_skipped_total"] == 9_000_003
    assert (samples["phosphene_region_share"], samples["phosphene_still_total"]) == (0.25, 2)
    memory = psutil.Process().memory_info().rss
    assert samples['phosphene_resident_memory_bytes{process="engine"}'] == pytest.approx(memory, rel=0.1)


@pytest.mark.parametrize("count", [1_234_567, 1_234_571, 548_405_248, 2**40 + 1])
def test_counts_past_a_million_are_exact(count: int) -> None:
    samples = read(metrics(replace(STATUS, frames=count, sinks={"null:": count})))
    assert samples["phosphene_frames_total"] == count
    assert samples['phosphene_sink_frames_total{sink="null:"}'] == count


def test_help_is_escaped() -> None:
    class Collector(module.StatusCollector):
        def collect(self) -> Any:
            return [module._gauge("x", "one\\two\nthree", 1.0)]

    registry = module.CollectorRegistry()
    registry.register(Collector(STATUS))
    assert b"# HELP phosphene_x one\\\\two\\nthree\n" in module.generate_latest(registry)


def test_an_engine_that_has_ended_has_no_samples() -> None:
    samples = read(metrics(replace(STATUS, engine_pid=None, engine=None, engine_ready=False)))
    assert samples["phosphene_engine_ready"] == 0
    assert (samples["phosphene_tokens_computed_total"], samples["phosphene_region_share"]) == (0, 1)
    assert not [name for name in samples if 'process="engine"' in name]
    assert not [name for name in read(metrics(replace(STATUS, engine_pid=2**22 + 1))) if 'process="engine"' in name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"engine": None, "engine_ready": False}, "the engine has not started yet"),
        ({"engine_ready": False}, "the engine is starting"),
        ({"frames": 0}, "no frame came out yet"),
    ],
)
def test_health(change: dict[str, Any], reason: str) -> None:
    healthy, report = health(replace(STATUS, **change))
    assert (healthy, report["reason"]) == (not reason, reason)


def test_the_published_keys_stay() -> None:
    keys = {"frames", "fps", "latency_ms", "engine_starts", "engine_pid", "engine_ready", "refused", "last_refusal"}
    assert keys <= set(STATUS.as_dict())
    counted = {"skipped": 3, "still": 2, "tokens_computed": 3_000_001, "tokens_skipped": 9_000_003}
    assert STATUS.as_dict()["engine"].items() >= (counted | {"regions": True, "region_share": 0.25}).items()
    assert replace(STATUS, engine=None).as_dict()["engine"] == {}
