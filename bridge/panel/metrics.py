"""How the show is, for machines that watch it: Prometheus' text at ``/metrics``, yes or no at ``/health``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psutil

#: name → (kind, help), without the prefix.
NAMES: Mapping[str, tuple[str, str]] = {
    "frames_per_second": ("gauge", "New frames a second"),
    "latency_seconds": ("gauge", "From texture in to texture out, median"),
    "frames_total": ("counter", "New frames that came out"),
    "source_frames_total": ("counter", "Frames that came in"),
    "sink_frames_total": ("counter", "Frames that were sent, by sink"),
    "skipped_total": ("counter", "Frames that the similarity filter skipped"),
    "dropped_total": ("counter", "Frames that came in while one was being made, and were replaced by a newer one"),
    "engine_ready": ("gauge", "1 while the engine runs"),
    "engine_starts_total": ("counter", "Times that the engine was started"),
    "errors_total": ("counter", "Errors of the engine"),
    "osc_messages_total": ("counter", "OSC messages that came in"),
    "refused_total": ("counter", "Messages and values that could not be meant"),
    "resident_memory_bytes": ("gauge", "Resident memory, by process"),
    "threads": ("gauge", "Threads, by process"),
    "open_handles": ("gauge", "Open files, sockets or handles, by process"),
}


def metrics(status: Mapping[str, Any]) -> str:
    """The status as Prometheus reads it."""
    lines = []
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in NAMES}
    for name, labels, value in _samples(status):
        values[name].append((labels, value))
    for name, (kind, help_) in NAMES.items():
        if values[name]:
            lines += [f"# HELP phosphene_{name} {help_}", f"# TYPE phosphene_{name} {kind}"]
            lines += [f"phosphene_{name}{labels} {value:g}" for labels, value in values[name]]
    return "\n".join(lines) + "\n"


def health(status: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether transformed frames come out now, and why not."""
    engine = status["engine"]
    reason = "" if status["engine_ready"] else "the engine is starting" if engine else "the engine has not started yet"
    if not reason and not status["frames"]:
        reason = "no frame came out yet"
    return not reason, {
        "healthy": not reason,
        "reason": reason,
        "fps": round(status["fps"], 2),
        "last_error": status["last_error"],
    }


def _samples(status: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    engine = status["engine"] or {}
    yield "frames_per_second", "", status["fps"]
    yield "latency_seconds", "", status["latency_ms"] / 1000
    yield "frames_total", "", status["frames"]
    yield "source_frames_total", "", status["source_frames"]
    for url, frames in status["sinks"].items():
        yield "sink_frames_total", f'{{sink="{_escaped(url)}"}}', frames
    yield "skipped_total", "", engine.get("skipped", 0)
    yield "dropped_total", "", engine.get("dropped", 0)
    yield "engine_ready", "", int(status["engine_ready"])
    yield "engine_starts_total", "", status["engine_starts"]
    yield "errors_total", "", status["errors"]
    yield "osc_messages_total", "", status["osc_messages"]
    yield "refused_total", "", status["refused"]
    for name, pid in (("bridge", None), ("engine", status["engine_pid"])):
        if name == "engine" and pid is None:
            continue
        try:
            process = psutil.Process(pid)
            found = (
                ("resident_memory_bytes", process.memory_info().rss),
                ("threads", process.num_threads()),
                ("open_handles", process.num_fds() if hasattr(process, "num_fds") else process.num_handles()),
            )
        except psutil.Error:
            continue  # it ended in this moment
        for what, value in found:
            yield what, f'{{process="{name}"}}', value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
