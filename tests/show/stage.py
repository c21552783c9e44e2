"""A stage for tests: a real show in this process with its real engine process, or the real command in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pythonosc.udp_client import SimpleUDPClient

from bridge.control.state import State
from bridge.osc.udp import UdpServer
from bridge.show.show import Show
from bridge.textures import Sink, open_source
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import parse_settings
from tests.waiting import until


class Audience(Sink):
    """A sink that keeps each frame's moment and number, and the last picture."""

    def __init__(self) -> None:
        super().__init__("audience:")
        self.seen: list[tuple[float, int, int]] = []
        self.picture: Frame | None = None

    def _write(self, frame: Frame) -> None:
        self.seen.append((time.monotonic(), frame.sequence, frame.snapshot))
        self.picture = frame

    def gaps(self, since: float, until: float | None = None) -> np.ndarray:
        """Seconds between the frames that came from ``since`` on."""
        moments = [seen[0] for seen in list(self.seen) if seen[0] >= since and (until is None or seen[0] <= until)]
        return np.diff(np.array(moments))

    def fresh(self, since: float) -> int:
        """How many different input frames were shown since then."""
        return len({seen[1] for seen in list(self.seen) if seen[0] >= since and seen[2] > 0})


class Stage:
    """A running show, its audience, and a desk that talks to it over UDP."""

    def __init__(
        self,
        source: str = "pattern:plasma",
        control: str = "",
        accelerate: str = "eager",
        presets: Sequence[Path] = (),
        desks: Sequence[str] = (),
        standby: bool = False,
        **values: str,
    ) -> None:
        names = {name.replace("_", "/"): value for name, value in values.items()}
        self.state = State(parse_settings({"size": "256x256", "steps": "1"} | names))
        self.audience = Audience()
        second = open_source(control) if control else None
        options = EngineOptions("cpu", accelerate=accelerate)
        self.show = Show(self.state, open_source(source), [self.audience], options, second, presets, desks, standby)
        self.server = UdpServer(self.show.osc, "127.0.0.1", 0)
        self.desk = SimpleUDPClient("127.0.0.1", self.server.port)
        self.show.open()

    def live(self, seconds: float = 60) -> Stage:
        """Waits until transformed frames come out."""
        until(lambda: self.show.meter.frames > 3, seconds, "the first frame")
        return self

    def engine(self, name: str) -> Any:
        """One value of the engine's status; None before it is ready."""
        return getattr(self.show.supervisor.status, name, None)

    def send(self, name: str, *values: object) -> None:
        self.desk.send_message(f"/phosphene{name}", list(values))  # type: ignore[arg-type]

    def close(self) -> None:
        self.server.close()
        self.show.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: The command without compiling, on ports that are free.
RUN = (sys.executable, "-m", "bridge", "run", "--accelerate", "eager", "--osc-port", "0", "--http-port", "0")


class Command:
    """``phosphene run …`` in a process of its own, its output read as it comes."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*RUN, "--log", "none", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environment) if environment else None,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until the output matches ``pattern``, and return the match."""
        until(lambda: re.search(pattern, self.output) is not None or self.process.poll() is not None, seconds, pattern)
        match = re.search(pattern, self.output)
        assert match, self.output
        return match

    def page(self) -> str:
        return self.wait_for(r"http://[\d.:]+/", 20)[0]

    def osc_port(self) -> int:
        return int(self.wait_for(r"udp [\d.]+:(\d+)", 20)[1])

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.page() + "status.json", timeout=5) as answer:
            return dict(json.load(answer))

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
