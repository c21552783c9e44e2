"""Real shows for tests: one in this process with its engine process, or the command in a separate process."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from pythonosc.udp_client import SimpleUDPClient

from bridge.control.state import State
from bridge.osc.udp import UdpServer
from bridge.show.show import Show
from bridge.textures import Sink, open_source
from engine.shared.frame import Frame
from engine.shared.messages import EngineStatus
from engine.shared.options import EngineOptions
from engine.shared.snapshot import parse_settings
from tests.waiting import until

#: The status before the engine's first report.
NO_ENGINE = EngineStatus("", "", "", "", {})


class ShownFrame(NamedTuple):
    """A frame that was shown: monotonic time in seconds, input frame's number, snapshot's number (0: none)."""

    at: float
    sequence: int
    snapshot: int


class Audience(Sink):
    """A sink that records time and numbers of each frame, and the last picture."""

    def __init__(self) -> None:
        super().__init__("audience:")
        self.shown: list[ShownFrame] = []
        self.picture: Frame | None = None

    def _write(self, frame: Frame) -> None:
        self.shown.append(ShownFrame(time.perf_counter(), frame.sequence, frame.snapshot))
        self.picture = frame

    def gaps(self, start: float, end: float | None = None) -> np.ndarray:
        """Return the seconds between the frames that were shown from ``start`` to ``end``."""
        times = [frame.at for frame in list(self.shown) if frame.at >= start and (end is None or frame.at <= end)]
        return np.diff(np.array(times))

    def count_transformed(self, start: float) -> int:
        """Return how many different input frames have been shown transformed since ``start``."""
        return len({frame.sequence for frame in list(self.shown) if frame.at >= start and frame.snapshot > 0})

    def has_seen(self, snapshot: int) -> bool:
        """Return whether one of the last frames was rendered with ``snapshot`` or a later one."""
        return any(frame.snapshot >= snapshot for frame in self.shown[-3:])


class Stage:
    """A running show, its audience, and a desk that controls it over UDP. ``second`` is the second source's URL."""

    def __init__(
        self,
        source: str = "pattern:plasma",
        second: str = "",
        accelerate: str = "eager",
        presets: Sequence[Path] = (),
        desks: Sequence[str] = (),
        standby: bool = False,
        **values: str,
    ) -> None:
        settings = {name.replace("_", "/"): value for name, value in values.items()}
        self.state = State(parse_settings({"size": "256x256", "steps": "1"} | settings))
        self.audience = Audience()
        second_source = open_source(second) if second else None
        options = EngineOptions("cpu", accelerate=accelerate)
        self.show = Show(
            self.state, open_source(source), [self.audience], options, second_source, presets, desks, standby
        )
        self.server = UdpServer(self.show.osc, "127.0.0.1", 0)
        self.desk = SimpleUDPClient("127.0.0.1", self.server.port)
        self.show.open()

    def wait_until_live(self, seconds: float = 60) -> None:
        """Wait until transformed frames come out."""
        until(lambda: self.show.meter.frames > 3, seconds, "the first transformed frames")

    @property
    def engine(self) -> EngineStatus:
        """The engine's last status; NO_ENGINE before it is ready."""
        return self.show.supervisor.status or NO_ENGINE

    def send(self, name: str, *values: object) -> None:
        self.desk.send_message(f"/phosphene{name}", list(values))  # type: ignore[arg-type]

    def close(self) -> None:
        self.server.close()
        self.show.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send_to_panel(page: str, messages: Sequence[str]) -> None:
    """Send messages over the WebSocket of the panel at ``page``, and wait until they have been read."""

    async def send() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(page + "panel") as panel:
            await panel.receive_json(timeout=10)
            for message in messages:
                await panel.send_str(message)
            await panel.close()

    asyncio.run(send())


def limit_descriptors(count: int) -> None:
    """Let this process have ``count`` open files, for good."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


#: The command without compilation, on free ports.
RUN = (sys.executable, "-m", "bridge", "run", "--accelerate", "eager", "--osc-port", "0", "--http-port", "0")


class Command:
    """``phosphene run …`` in a separate process. ``lines`` are its output so far.

    On POSIX systems it may be limited to a number of open files, its ``descriptors``.
    """

    def __init__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, descriptors: int | None = None
    ) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [*RUN, "--log", "none", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environment) if environment else None,
            preexec_fn=partial(limit_descriptors, descriptors) if descriptors else None,
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
        """Return the panel's URL."""
        return self.wait_for(r"http://[\d.:]+/", 20)[0]

    def osc_port(self) -> int:
        """Return the UDP port that the command listens on."""
        return int(self.wait_for(r"udp [\d.]+:(\d+)", 20)[1])

    def status(self) -> dict[str, Any]:
        """Return ``/status.json``."""
        with urllib.request.urlopen(self.page() + "status.json", timeout=5) as response:
            return dict(json.load(response))

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
