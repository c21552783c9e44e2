"""Load test: more OSC, TCP and HTTP than any desk sends; measures frame gaps and control latency.

Prints a Markdown table. Each load is sent by another process, see ``bridge.stress.senders``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import psutil

from bridge.osc.tcp import TcpServer
from bridge.panel.server import PanelServer
from bridge.stress.harness import StressShow
from bridge.stress.senders import LOADED_PARAMETER, LOCALHOST, SENDERS, Ports, message
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value

#: The value that the loaded parameter must take after a load, and the parameter that measures control latency.
FINAL_VALUE, PROBED_PARAMETER = 0.875, "/output/hue"
#: Limits: gap between frames and control latency (p99) in ms, growth of memory in MiB.
MAX_GAP_MS, MAX_LATENCY_MS, MAX_GROWTH_MIB = 150, 100, 64
#: Seconds between two control messages of the latency probe, and until one counts as lost.
PROBE_SECONDS, LOST_SECONDS = 0.05, 1.0
COLUMNS = (
    "Load",
    "Messages received",
    "Longest gap",
    "New frames per second",
    "Control latency (p50, p99)",
    "Memory",
    "Last value",
)


class LatencyProbe:
    """Sets a parameter over OSC twenty times a second and measures how soon it is set."""

    def __init__(self, test: StressShow) -> None:
        self.seconds: list[float] = []
        self.lost = 0
        self._address = (LOCALHOST, test.osc.port)
        self._stop, self._set = threading.Event(), threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        test.state.on_set(self._note)
        self._thread = threading.Thread(target=self._run, name="latency probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop probing."""
        self._stop.set()
        self._thread.join(3)
        self._socket.close()

    def percentiles_ms(self) -> tuple[float, float]:
        """Return the 50th and 99th percentile in ms."""
        p50, p99 = np.percentile(self.seconds or [9.9], (50, 99)) * 1000
        return float(p50), float(p99)

    def _note(self, names: frozenset[str], _origin: str) -> None:
        if PROBED_PARAMETER in names:
            self._set.set()

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(PROBE_SECONDS):
            count += 1
            self._set.clear()
            start = time.perf_counter()
            self._socket.sendto(message(PROBED_PARAMETER, float(count % 170)), self._address)
            if self._set.wait(LOST_SECONDS):
                self.seconds.append(time.perf_counter() - start)
            else:
                self.lost += 1


def run_load(engine: EngineOptions, values: Mapping[str, Value], seconds: float) -> bool:
    """Send each load for ``seconds``, print a row for each, and return whether every limit held."""
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with StressShow(engine, values, recording=False) as test:
        tcp = TcpServer(test.show.osc, LOCALHOST, 0)
        panel = PanelServer(test.show, LOCALHOST, 0, test.osc.port)
        try:
            ports = Ports(test.osc.port, tcp.port, panel.port)
            results = [_run_sender(test, ports, name, seconds) for name in SENDERS]
        finally:
            panel.close()
            tcp.close()
    good = all(results)
    print(
        f"\ngap at most {MAX_GAP_MS} ms, control latency (p99) at most {MAX_LATENCY_MS} ms,"
        f" memory within {MAX_GROWTH_MIB} MiB, the last value set: {'passed' if good else 'FAILED'}"
    )
    return good


def _run_sender(test: StressShow, ports: Ports, name: str, seconds: float) -> bool:
    """Send one load, print its row, and return whether every limit held."""
    process = psutil.Process()
    memory, messages = process.memory_info().rss, test.show.osc.messages
    command = [sys.executable, "-m", "bridge.stress.senders", name, *map(str, astuple(ports)), str(seconds)]
    sender = subprocess.Popen(command)
    time.sleep(1.0)  # until it sends
    start, probe = time.perf_counter(), LatencyProbe(test)
    sender.wait(seconds + 60)
    probe.close()
    end = time.perf_counter()
    _wait_for_backlog(test)
    gap = test.audience.longest_gap(start) * 1000
    fps = test.audience.count_transformed(start) / (end - start)
    value_set = _set_final_value(test)
    p50, p99 = probe.percentiles_ms()
    growth = (process.memory_info().rss - memory) / 2**20
    lost = f", {probe.lost} lost" if probe.lost else ""
    row = (
        name,
        f"{test.show.osc.messages - messages}",
        f"{gap:.0f} ms",
        f"{fps:.1f}",
        f"{p50:.1f} ms, {p99:.1f} ms{lost}",
        f"{growth:+.1f} MiB",
        "set" if value_set else "NOT SET",
    )
    print(f"| {' | '.join(row)} |", flush=True)
    return gap <= MAX_GAP_MS and p99 <= MAX_LATENCY_MS and growth < MAX_GROWTH_MIB and value_set


def _wait_for_backlog(test: StressShow) -> None:
    """Wait until no more messages come in."""
    count = -1
    while test.show.osc.messages != count:
        count = test.show.osc.messages
        time.sleep(0.3)


def _set_final_value(test: StressShow) -> bool:
    """Set the loaded parameter once more, and return whether that counts in the end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(message(LOADED_PARAMETER, FINAL_VALUE), (LOCALHOST, test.osc.port))
    end = time.perf_counter() + 1.0
    while test.state.snapshot().real(LOADED_PARAMETER) != FINAL_VALUE and time.perf_counter() < end:
        time.sleep(0.005)
    return test.state.snapshot().real(LOADED_PARAMETER) == FINAL_VALUE
