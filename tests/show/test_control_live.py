"""oscsend, QLC+ and a client over TCP drive one run: what each of them sends is seen on panel, feedback and picture."""

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

#: QLC+'s own file: universe 1 goes out as OSC.
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
    """A running show with every door open, a subscriber to its feedback, and a browser on its panel."""

    def __init__(self, stage: Stage, page: webdriver.Chrome, tcp: TcpServer) -> None:
        self.stage, self.page, self.tcp = stage, page, tcp
        self.told: dict[str, object] = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = stage.server.port
        self.socket.sendto(b"/phosphene/subscribe\0\0\0\0,\0\0\0", ("127.0.0.1", self.port))
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: "/phosphene/master" in self.told, 5, "the subscription")

    def _listen(self) -> None:
        try:
            while True:
                message = OscMessage(self.socket.recv(65536))
                self.told[message.address] = message.params[0] if message.params else None
        except OSError:
            pass  # closed

    def shows(self, name: str, value: object, bright: Callable[[float], bool]) -> None:
        """State, feedback, panel and picture, each within seconds: other programs, and a browser, share the machine."""

        def close(found: object) -> bool:
            return abs(float(found) - float(value)) < 0.005 if isinstance(value, int | float) else found == value  # type: ignore[arg-type]

        until(lambda: close(self.stage.state.snapshot()[name]), 15, f"{name} in the state")
        until(lambda: close(self.told.get(f"/phosphene{name}")), 5, f"{name} in the feedback")
        until(lambda: close(panel_value(self.page, name)), 5, f"{name} on the panel")
        until(lambda: bright(brightness(self.page)), 8, f"the picture after {name}")


@pytest.fixture(scope="module")
def house() -> Iterator[tuple[Stage, TcpServer, str]]:
    with Stage(desks=("qlcplus", "eos"), cue_list="demo") as stage:
        tcp = TcpServer(stage.show.osc, "127.0.0.1", 0)
        panel = PanelServer(stage.show, "127.0.0.1", 0)
        stage.live()
        yield stage, tcp, f"http://127.0.0.1:{panel.port}/"
        panel.close()
        tcp.close()


@pytest.fixture
def run(house: tuple[Stage, TcpServer, str], browser: OpenBrowser) -> Iterator[Run]:
    stage, tcp, url = house
    page = browser(1200, 800)
    page.get(url)
    until(lambda: "fps" in text(page, "#numbers"), 20, "the panel")
    stage.send("/panic")
    until(lambda: brightness(page) > 10, 10, "the picture")
    made = Run(stage, page, tcp)
    yield made
    made.socket.close()


def dark(found: float) -> bool:
    return found < 3


def light(found: float) -> bool:
    return found > 10


@needs("oscsend", "chromium", "chromedriver")
def test_oscsend_is_seen_everywhere(run: Run) -> None:
    for name, kind, value, bright in (
        ("/master", "f", 0.0, dark),
        ("/master", "f", 1.0, light),
        ("/prompt", "s", "orange fire", light),
    ):
        subprocess.run(["oscsend", "127.0.0.1", str(run.port), f"/phosphene{name}", kind, str(value)], check=True)
        run.shows(name, value, bright)


@needs("qlcplus", "chromium", "chromedriver")
def test_qlcplus_is_seen_everywhere(run: Run, tmp_path: Path) -> None:
    """Its first channels through the shipped map, moved at its web interface."""
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
                    assert attempt < 99, "QLC+ did not come up"
                    await asyncio.sleep(0.2)
            cue = run.stage.show.automation.cues
            for channel, level, name, value, bright in (
                (2, 51, "/strength", 0.2, light),
                (
                    1,
                    204,
                    "/master",
                    0.8,
                    light,
                ),  # a change, so waited for: QLC+ sends none that is undone before its next tick
                (1, 0, "/master", 0.0, dark),
                (1, 255, "/master", 1.0, light),
                (6, 255, "/blackout", True, dark),
                (6, 0, "/blackout", False, light),
            ):
                await desk.send_str(f"CH|{channel}|{level}")
                await asyncio.to_thread(run.shows, name, value, bright)
            await desk.send_str("CH|5|255")
            await asyncio.to_thread(until, lambda: cue.status()["current"] == "1", 5, "GO")
            await asyncio.to_thread(until, lambda: "now 1" in text(run.page, "#now"), 5, "GO on the panel")
            await asyncio.to_thread(
                until, lambda: run.told.get("/phosphene/status/cue") == "1", 5, "GO in the feedback"
            )

    try:
        asyncio.run(play())
    finally:
        program.terminate()
        program.wait(10)


@pytest.mark.parametrize("framing", ["length", "slip"])
def test_a_desk_over_tcp_is_seen_everywhere(run: Run, framing: str) -> None:
    """OSC 1.0's length before each packet, as Eos has it, or OSC 1.1's SLIP, as grandMA3 has it."""

    def text_of(value: str) -> bytes:
        return value.encode() + b"\0" * (4 - len(value) % 4)

    def framed(packet: bytes) -> bytes:
        if framing == "length":
            return struct.pack(">i", len(packet)) + packet
        return b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"

    with socket.create_connection(("127.0.0.1", run.tcp.port), timeout=5) as desk:
        for level, bright in ((0.0, dark), (1.0, light)):
            desk.sendall(framed(text_of("/phosphene/master") + text_of(",f") + struct.pack(">f", level)))
            run.shows("/master", level, bright)
        desk.sendall(framed(text_of("/eos/out/event/cue/1/2/fire") + text_of(",")))
        until(lambda: run.told.get("/phosphene/status/cue") == "2", 5, "the desk's cue in the feedback")
        until(lambda: "now 2" in text(run.page, "#now"), 5, "the desk's cue on the panel")
        time.sleep(0.1)
    assert run.stage.state.rejected == 0
