"""The show of the abuse test: ``phosphene run`` in a process of its own, in a scratch folder, with few descriptors."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
from pythonosc.osc_message import OscMessage

from bridge.errors import UserError
from bridge.osc.subscriptions import encode_message
from bridge.stress.scratch import TIMEOUT_SECONDS, Scratch
from bridge.stress.senders import LOCALHOST, Ports
from engine.shared.parameter import Value
from engine.shared.table import ROOT

#: Longest wait for one answer, in seconds.
ANSWER_SECONDS = 1.0
#: Longest wait for the show to end when it is asked to, in seconds.
END_SECONDS = 15.0
#: The parameter whose value is asked for.
ASKED_PARAMETER = "/strength"
#: Time between two looks at the status, in seconds.
LOOK_SECONDS = 0.5
#: Most answers that are read while one is waited for: the present values of a subscription may come first.
MAX_ANSWERS = 2000


class RealShow:
    """A running show, seen from outside. ``lines`` are its output so far. A context manager.

    ``descriptors`` is the number of open files and sockets that its processes may have; 0 leaves the system's.
    """

    def __init__(self, scratch: Scratch, *arguments: str, descriptors: int = 0) -> None:
        self.scratch = scratch
        command = [
            sys.executable, "-m", "bridge", "run", "--source", "pattern:plasma", "--sink", "null:",
            "--osc-port", "0", "--http-port", "0", "--presets", str(scratch.presets),
            "--session", str(scratch.folder / "session.json"), "--log", str(scratch.folder / "show.jsonl"), *arguments,
        ]  # fmt: skip
        if descriptors and sys.platform != "win32":
            command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command, env=dict(scratch.environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, name="output of the show", daemon=True).start()
        self.ports = Ports(0, 0, 0)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())

    def __enter__(self) -> RealShow:
        try:
            self.wait_until(lambda: self._find(r"panel +http://[^/]*:(\d+)/"), "address of the panel")
            osc = int(self._find(r"OSC +udp .*:(\d+) and tcp"))
            self.ports = Ports(osc, osc, int(self._find(r"panel +http://[^/]*:(\d+)/")))
            self.wait_until(lambda: self.status()["frames"] > 10, "first frames")
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> float:
        """Ask the show to end; return how many seconds it took, infinity where it had to be killed."""
        start = time.perf_counter()
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return float("inf")
        return time.perf_counter() - start

    def _find(self, pattern: str) -> str:
        match = re.search(pattern, "\n".join(self.lines))
        return match[1] if match else ""

    def wait_until(self, condition: Callable[[], object], what: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """Wait for ``condition``, also past answers that fail. Raises UserError after ``timeout`` seconds."""
        end = time.perf_counter() + timeout
        while True:
            try:
                if condition():
                    return
            except (OSError, ValueError):
                pass
            if self.process.poll() is not None:
                raise UserError(f"the show ended with exit code {self.process.returncode}: {self.lines[-3:]}")
            if time.perf_counter() > end:
                raise UserError(f"no {what} within {timeout:.0f} s; last line: {self.lines[-1:]}")
            time.sleep(0.02)

    def get(self, path: str, timeout: float = 5.0) -> bytes:
        """Return what the panel's port answers. Raises OSError."""
        with urllib.request.urlopen(f"http://{LOCALHOST}:{self.ports.http}/{path}", timeout=timeout) as answer:
            return bytes(answer.read())

    def is_usable(self) -> bool:
        """Return whether the show runs and answers over HTTP and OSC."""
        return self.process.poll() is None and self.is_healthy() and self.ask() < ANSWER_SECONDS

    def status(self) -> dict[str, Any]:
        """Return ``/status.json``. Raises OSError."""
        return dict(json.loads(self.get("status.json")))

    def is_healthy(self) -> bool:
        """Return whether ``/health`` answers 200."""
        try:
            return bool(self.get("health"))
        except OSError:
            return False

    def send(self, name: str, *values: Value) -> None:
        """Send an OSC message over UDP."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(encode_message(ROOT + name, *values), (LOCALHOST, self.ports.udp))

    def ask(self) -> float:
        """Ask for a value over UDP and return the seconds until the answer, infinity without one."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(ANSWER_SECONDS)
            start = time.perf_counter()
            udp.sendto(encode_message(ROOT + ASKED_PARAMETER, "?"), (LOCALHOST, self.ports.udp))
            try:
                for _ in range(MAX_ANSWERS):
                    if OscMessage(udp.recv(65536)).address == ROOT + ASKED_PARAMETER:
                        return time.perf_counter() - start
            except OSError:
                pass
        return float("inf")

    def kill_engine(self) -> None:
        """Kill the engine process and wait until another one is ready."""
        before = self.status()
        os.kill(before["engine_pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
        self.wait_until(
            lambda: self.status()["engine_starts"] > before["engine_starts"] and self.status()["engine_ready"],
            "engine after a kill",
        )

    def bridge_memory_mib(self) -> float:
        """Return the resident memory of the bridge alone."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


class Probe:
    """Looks at the status again and again, as an operator would: ``gap_ms`` is the longest gap that it has seen."""

    def __init__(self, show: RealShow) -> None:
        self._show = show
        self.gap_ms = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.gap_ms = max(self.gap_ms, float(self._show.status()["gap_ms"]))
            except (OSError, ValueError):
                pass  # whether it answers is checked afterwards
