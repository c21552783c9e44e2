"""The page on parameters, followed: the new one is set over OSC, read in a snapshot, documented, and does its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contributing.pages import follow, run_python

CHECK = """
from pythonosc.udp_client import SimpleUDPClient

from bridge.control.state import State
from bridge.osc.dispatch import OscControl
from bridge.osc.udp import UdpServer
from tests.waiting import until

state = State()
control = OscControl(state)
server = UdpServer(control, "127.0.0.1", 0)
desk = SimpleUDPClient("127.0.0.1", server.port)
desk.send_message("/phosphene/input/levels", 99)
until(lambda: state.snapshot()["/input/levels"])
desk.send_message("/phosphene/input/levels", "many")
until(lambda: state.rejected)
print(state.snapshot()["/input/levels"])
server.close()
control.close()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return follow("parameter.md", tmp_path_factory.mktemp("parameter"))


def test_it_is_set_over_osc_clamped_and_read_in_a_snapshot(root: Path) -> None:
    assert run_python(root, "-c", CHECK).strip() == "32"


def test_it_does_what_the_page_promises(root: Path) -> None:
    tests = ("tests/engine/image/test_posterize.py", "tests/engine/shared/test_settings.py")
    output = run_python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert "passed" in output
    assert "failed" not in output


def test_it_is_in_everything_that_is_generated(root: Path) -> None:
    run_python(root, "-m", "bridge.guides.generate")
    reference = (root / "bridge" / "guides" / "parameters.md").read_text(encoding="utf-8")
    assert "| `/input/levels` | int | 0–32 | `0` | live |" in reference
    assert "/input/levels" in (root / "touchdesigner" / "parameters.json").read_text(encoding="utf-8")
