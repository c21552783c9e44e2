"""The page on desk maps, followed: messages of the example's box drive parameters over a real socket."""

from __future__ import annotations

from pathlib import Path

from tests.contributing.pages import follow, run_python

CHECK = """
from pythonosc.udp_client import SimpleUDPClient

from bridge.control.map_file import map_names
from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.osc.dispatch import OscControl
from bridge.osc.udp import UdpServer
from tests.waiting import until

assert "booth" in map_names()
state, recalled, started = State(), [], []
state.on_command("/preset", recalled.append)
state.on_trigger("/cue/go", lambda: started.append(1))
control = OscControl(state, dict, ControllerMap(state, ["booth"]))
server = UdpServer(control, "127.0.0.1", 0)
desk = SimpleUDPClient("127.0.0.1", server.port)
for address, arguments in (
    ("/booth/fader", [25.0]), ("/booth/knob", [1, 0.5]), ("/midi/cc/1/20", [127]),
    ("/booth/button/go", [1]), ("/booth/button/go", [0]), ("/booth/look/bonfire", [1]),
):
    desk.send_message(address, arguments)
until(lambda: recalled)
snapshot = state.snapshot()
print(snapshot["/master"], round(snapshot["/strength"], 6), snapshot["/feedback"], started, recalled, state.rejected)
server.close()
control.close()
"""


def test_the_example_map_drives_parameters_presets_and_cues(tmp_path: Path) -> None:
    root = follow("desk-map.md", tmp_path)
    output = run_python(root, "-c", CHECK)
    assert output.split() == ["0.25", "0.5", "1.0", "[1]", "['bonfire']", "0"]


def test_every_shipped_map_test_covers_the_new_map(tmp_path: Path) -> None:
    root = follow("desk-map.md", tmp_path)
    output = run_python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/bridge/control/test_mapping.py")
    assert "passed" in output
