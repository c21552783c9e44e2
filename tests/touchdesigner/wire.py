"""Connects the simulated component to real sockets: advances frames, sends its OSC and delivers the replies."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pythonosc.osc_message import OscMessage

from bridge.osc.subscriptions import encode_message
from tests.touchdesigner.simulated_parameters import Par
from tests.touchdesigner.simulator import Operator, TouchDesigner

FOLDER = Path(__file__).parent.parent.parent / "touchdesigner"
#: Folder of the component in the guide.
GUIDE_FOLDER = r"C:\phosphene\touchdesigner"


def run_textport_line(folder: Path = FOLDER) -> None:
    """Run the line that the guide gives for the Textport, with the script in ``folder``."""
    guide = (FOLDER / "guide.md").read_text(encoding="utf-8")
    line = re.findall(r"^```python\n(import .*)\n```$", guide, re.MULTILINE)[0]
    assert GUIDE_FOLDER in line
    exec(line.replace(GUIDE_FOLDER + "\\", str(folder) + "/"), {})


def build_component(monkeypatch: pytest.MonkeyPatch, touch: TouchDesigner) -> Operator:
    """Build the component in ``touch`` with the guide's line and return it."""
    monkeypatch.setitem(sys.modules, "td", touch.module())
    run_textport_line()
    component = touch.project.op("Phosphene")
    assert component is not None
    return component


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> tuple[TouchDesigner, Operator]:
    """Build the component; ``import build`` finds the script, as in the line of earlier guides."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    touch = TouchDesigner()
    return touch, build_component(monkeypatch, touch)


class Wire:
    """The component's OSC DATs on real UDP sockets; ``port`` is the engine's OSC port."""

    def __init__(self, touch: TouchDesigner, component: Operator, port: int) -> None:
        self.touch, self.component = touch, component
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.001)
        component.par.Port = port
        component.par.Feedbackport = self.socket.getsockname()[1]

    def advance(self, seconds: float = 0.0, until: Callable[[], bool] = lambda: False, timeout: float = 6.0) -> None:
        """Advance frames and exchange messages for ``seconds``, or until ``until`` is true."""
        end = time.perf_counter() + (seconds or timeout)
        while time.perf_counter() < end and not until():
            self.touch.frame(self.component)
            out = self.component.op("osc_out")
            assert out is not None
            for address, values in out._sent:
                self.socket.sendto(encode_message(address, *values), ("127.0.0.1", int(out.par.port.eval())))
            out._sent.clear()
            try:
                while True:
                    message = OscMessage(self.socket.recv(65536))
                    self.touch.receive(self.component, message.address, list(message.params))
            except TimeoutError:
                pass
        assert seconds or until(), "timed out"

    def close(self) -> None:
        self.socket.close()


def par(component: Operator, name: str) -> Par:
    """Return a parameter that must exist."""
    parameter = component.par[name]
    assert parameter is not None, name
    return parameter
