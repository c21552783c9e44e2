"""oscsend, QLC+ and a TCP client control one show: each message reaches state, OSC feedback, panel and picture."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from pythonosc.osc_message import OscMessage

from bridge.osc.tcp import TcpServer
from bridge.panel.server import PanelServer
from tests.requirements_system import needs
from tests.show.browsing import OpenBrowser, brightness, browser, needs_chromium, panel_value, text, webdriver
from tests.show.stage import Stage
from tests.waiting import until

__all__ = ["browser"]  # a fixture
pytestmark = needs_chromium

#: A QLC+ workspace that sends universe 1 as OSC.
WORKSPACE = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE Workspace>
<Workspace xmlns="http://www.qlcplus.org/Workspace" CurrentWindow="SimpleDesk">
 <Creator><Name>Q Light Controller Plus</Name><Version>4.12.6</Version><Author/></Creator>
 <Engine>
  <InputOutputMap>
   <Universe Name="Universe 1" ID="0">
    <Output Plugin="OSC" UID="127.0.0.1" Line="0"><PluginParameters outputIP="127.0.0.1" outputPort="{port}"/></Output>
   </Universe>
  </InputOutputMap>
 </Engine>
</Workspace>
"""


class Run:
    """A running show on UDP, TCP and HTTP, with a subscriber to its OSC feedback and a browser on its panel."""

    def __init__(self, stage: Stage, page: webdriver.Chrome, tcp: TcpServer) -> None:
        self.stage, self.page, self.tcp = stage, page, tcp
        self.feedback: dict[str, object] = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = stage.server.port
        self.socket.sendto(b"/phosphene/subscribe\0\0\0\0,\0\0\0", ("127.0.0.1", self.port))
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: "/phosphene/master" in self.feedback, 5, "the feedback after subscribing")

    def _listen(self) -> None:
        try:
            while True:
                message = OscMessage(self.socket.recv(65536))
                self.feedback[message.address] = message.params[0] if message.params else None
        except OSError:
            pass  # closed

    def wait_for(self, name: str, value: object, is_expected: Callable[[float], bool]) -> None:
        """Wait for the value in state, feedback, panel and picture. A browser shares the machine: seconds each."""

        def is_close(actual: object) -> bool:
            if not isinstance(value, int | float):
                return actual == value
            return isinstance(actual, int | float) and abs(actual - value) < 0.005

        until(lambda: is_close(self.stage.state.snapshot()[name]), 15, f"{name} in the state")
        until(lambda: is_close(self.feedback.get(f"/phosphene{name}")), 5, f"{name} in the feedback")
        until(lambda: is_close(panel_value(self.page, name)), 5, f"{name} on the panel")
        until(lambda: is_expected(brightness(self.page)), 8, f"the picture after {name}")


@pytest.fixture(scope="module")
def running_show() -> Iterator[tuple[Stage, TcpServer, str]]:
    with Stage(desks=("qlcplus", "eos"), cue_list="demo") as stage:
        tcp = TcpServer(stage.show.osc, "127.0.0.1", 0)
        panel = PanelServer(stage.show, "127.0.0.1", 0)
        stage.wait_until_live()
        yield stage, tcp, f"http://127.0.0.1:{panel.port}/"
        panel.close()
        tcp.close()


@pytest.fixture
def run(running_show: tuple[Stage, TcpServer, str], browser: OpenBrowser) -> Iterator[Run]:
    stage, tcp, url = running_show
    page = browser(1200, 800)
    page.get(url)
    until(lambda: "fps" in text(page, "#numbers"), 20, "the panel")
    stage.send("/panic")
    until(lambda: brightness(page) > 10, 10, "the picture")
    connected = Run(stage, page, tcp)
    yield connected
    connected.socket.close()


def is_dark(level: float) -> bool:
    return level < 3


def is_bright(level: float) -> bool:
    return level > 10


@needs("oscsend", "chromium", "chromedriver")
def test_oscsend_is_seen_everywhere(run: Run) -> None:
    for name, tag, value, is_expected in (
        ("/master", "f", 0.0, is_dark),
        ("/master", "f", 1.0, is_bright),
        ("/prompt", "s", "orange fire", is_bright),
    ):
        subprocess.run(["oscsend", "127.0.0.1", str(run.port), f"/phosphene{name}", tag, str(value)], check=True)
        run.wait_for(name, value, is_expected)


@needs("qlcplus", "chromium", "chromedriver")
def test_qlcplus_is_seen_everywhere(run: Run, tmp_path: Path) -> None:
    """The first channels, through the shipped map, set on QLC+'s web interface."""
    import asyncio

    workspace = tmp_path / "show.qxw"
    workspace.write_text(WORKSPACE.format(port=run.port), encoding="utf-8")
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = subprocess.Popen(["qlcplus", "-w", "-p", "-o", str(workspace)], env=environment, **quiet)

    async def play() -> None:
        async with aiohttp.ClientSession() as session:
            for attempt in range(100):
                try:
                    desk = await session.ws_connect("http://127.0.0.1:9999/qlcplusWS")
                    break
                except aiohttp.ClientError:
                    assert attempt < 99, "QLC+ did not start"
                    await asyncio.sleep(0.2)
            cues = run.stage.show.automation.cues
            # QLC+ sends no change that is undone before its next tick: each level is waited for.
            for channel, level, name, value, is_expected in (
                (2, 51, "/strength", 0.2, is_bright),
                (1, 204, "/master", 0.8, is_bright),
                (1, 0, "/master", 0.0, is_dark),
                (1, 255, "/master", 1.0, is_bright),
                (6, 255, "/blackout", True, is_dark),
                (6, 0, "/blackout", False, is_bright),
            ):
                await desk.send_str(f"CH|{channel}|{level}")
                await asyncio.to_thread(run.wait_for, name, value, is_expected)
            await desk.send_str("CH|5|255")
            await asyncio.to_thread(until, lambda: cues.status()["current"] == "1", 5, "GO")
            await asyncio.to_thread(until, lambda: "now 1" in text(run.page, "#now"), 5, "GO on the panel")
            await asyncio.to_thread(
                until, lambda: run.feedback.get("/phosphene/status/cue") == "1", 5, "GO in the feedback"
            )

    try:
        asyncio.run(play())
    finally:
        program.terminate()
        program.wait(10)


@pytest.mark.parametrize("framing", ["length", "slip"])
def test_a_desk_over_tcp_is_seen_everywhere(run: Run, framing: str) -> None:
    """Packets after their length (OSC 1.0, Eos) or in SLIP frames (OSC 1.1, grandMA3)."""

    def encode_text(value: str) -> bytes:
        return value.encode() + b"\0" * (4 - len(value) % 4)

    def add_framing(packet: bytes) -> bytes:
        if framing == "length":
            return struct.pack(">i", len(packet)) + packet
        return b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"

    with socket.create_connection(("127.0.0.1", run.tcp.port), timeout=5) as desk:
        for level, is_expected in ((0.0, is_dark), (1.0, is_bright)):
            desk.sendall(add_framing(encode_text("/phosphene/master") + encode_text(",f") + struct.pack(">f", level)))
            run.wait_for("/master", level, is_expected)
        desk.sendall(add_framing(encode_text("/eos/out/event/cue/1/2/fire") + encode_text(",")))
        until(lambda: run.feedback.get("/phosphene/status/cue") == "2", 5, "the desk's cue in the feedback")
        until(lambda: "now 2" in text(run.page, "#now"), 5, "the desk's cue on the panel")
        time.sleep(0.1)
    assert run.stage.state.rejected == 0
