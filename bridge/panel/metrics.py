"""The show's status for monitoring: Prometheus metrics at ``/metrics``, healthy or not at ``/health``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.show.status import ShowStatus
from engine.shared.messages import EngineStatus

#: Samples of a metric: label → value. A metric without labels has one sample, with the label "".
Samples = Mapping[str, float]
PREFIX = "phosphene_"


def metrics(status: ShowStatus) -> bytes:
    """Return the status in Prometheus' text format, to be served as ``prometheus_client.CONTENT_TYPE_LATEST``."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    return generate_latest(registry)


def health(status: ShowStatus) -> tuple[bool, dict[str, Any]]:
    """Return whether transformed frames come out now, and the report with the reason if not."""
    reason = ""
    if not status.engine_ready:
        reason = "the engine is starting" if status.engine is not None else "the engine has not started yet"
    elif not status.frames:
        reason = "no frame came out yet"
    return not reason, {
        "healthy": not reason,
        "reason": reason,
        "fps": round(status.fps, 2),
        "last_error": status.last_error,
    }


class StatusCollector(Collector):
    """Turns one status into metrics."""

    def __init__(self, status: ShowStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Return every metric that has a sample."""
        status, engine = self._status, self._status.engine
        memory, threads, handles = _process_samples(status.engine_pid)
        metrics = (
            _gauge("frames_per_second", "New frames per second", status.fps),
            _gauge("latency_seconds", "Median latency from texture in to texture out", status.latency_ms / 1000),
            _gauge(
                "output_gap_seconds", "Longest time between two pictures, of the last two seconds", status.gap_ms / 1000
            ),
            _counter("output_gaps", "Times of more than 0.1 s between two pictures", status.gaps),
            _counter("frames", "New frames put out", status.frames),
            _counter("source_frames", "Frames received", status.source_frames),
            _counter("sink_frames", "Frames sent, by sink", status.sinks, "sink"),
            *_engine_counters(engine),
            _gauge("engine_ready", "1 while the engine runs", int(status.engine_ready)),
            _counter("engine_starts", "Starts of the engine", status.engine_starts),
            _counter("errors", "Errors of the engine", status.errors),
            _counter("osc_messages", "OSC messages received", status.osc_messages),
            _counter("refused", "OSC messages and parameter values rejected as invalid", status.rejected),
            _gauge("resident_memory_bytes", "Resident memory, by process", memory, "process"),
            _gauge("threads", "Threads, by process", threads, "process"),
            _gauge("open_handles", "Open files, sockets or handles, by process", handles, "process"),
        )
        return [metric for metric in metrics if metric.samples]


def _engine_counters(engine: EngineStatus | None) -> Iterator[Metric]:
    """Yield what the engine counts: from 0 where it has not begun."""

    def read(field: str) -> float:
        return getattr(engine, field) if engine is not None else 0

    yield _counter("skipped", "Frames skipped by the similarity filter, or still", read("skipped"))
    yield _counter("still", "Frames in which nothing changed, so that nothing was computed", read("still"))
    yield _counter("dropped", "Frames replaced by a newer one before processing", read("dropped"))
    yield _counter("tokens_computed", "Tokens computed while regions may be skipped", read("tokens_computed"))
    yield _counter("tokens_skipped", "Tokens of skipped regions", read("tokens_skipped"))
    share = engine.region_share if engine is not None else 1.0
    yield _gauge("region_share", "Share of the tokens computed over the last second, 1 without regions", share)


def _gauge(name: str, help: str, samples: float | Samples, label: str = "") -> Metric:
    return _fill(GaugeMetricFamily(PREFIX + name, help, labels=[label] if label else []), samples)


def _counter(name: str, help: str, samples: float | Samples, label: str = "") -> Metric:
    """Return a counter; the format adds ``_total`` to its name."""
    return _fill(CounterMetricFamily(PREFIX + name, help, labels=[label] if label else []), samples)


def _fill(family: Any, samples: float | Samples) -> Metric:
    for label, value in samples.items() if isinstance(samples, Mapping) else [("", samples)]:
        family.add_metric([label] if label else [], value)
    return family


def _process_samples(engine_pid: int | None) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return resident memory, threads and open handles of the bridge and, if it runs, of the engine."""
    memory: dict[str, float] = {}
    threads: dict[str, float] = {}
    handles: dict[str, float] = {}
    for name, process in _processes(engine_pid):
        try:
            memory[name] = process.memory_info().rss
            threads[name] = process.num_threads()
            handles[name] = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        except psutil.Error:
            continue  # it has just ended
    return memory, threads, handles


def _processes(engine_pid: int | None) -> Iterator[tuple[str, psutil.Process]]:
    yield "bridge", psutil.Process()
    if engine_pid is not None and psutil.pid_exists(engine_pid):
        yield "engine", psutil.Process(engine_pid)
