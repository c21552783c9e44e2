"""The TouchDesigner component in a strict simulation of TouchDesigner, against Phosphene's real OSC ports."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.control.state import State
from bridge.guides import touchdesigner_parameters
from bridge.osc.dispatch import OscControl
from bridge.osc.oscquery import build_tree
from bridge.osc.udp import UdpServer
from bridge.panel.sockets import describe_parameter as panel_row
from bridge.performance.presets import PresetLibrary
from engine.shared.table import ROOT, TABLE
from tests.touchdesigner.simulated_parameters import OPERATORS, Unsupported
from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import FOLDER, Wire, built, par

__all__ = ["built"]  # a fixture


class Engine(Wire):
    """The OSC side of a show, connected to the component."""

    def __init__(self, touch: TouchDesigner, component: Operator) -> None:
        self.state = State()
        self.status: dict[str, Any] = {"fps": 24.5, "latency": 41.0, "state": "live", "cue": "2", "cue/next": "3"}
        self.status |= {
            "version": touchdesigner_parameters.project_version(),
            "presets": ("lava", "my-look"),
            "cues": ("1 In", "2 Up", "3 Out"),
        }
        self.control = OscControl(self.state, lambda: self.status)
        self.server = UdpServer(self.control, "127.0.0.1", 0)
        super().__init__(touch, component, self.server.port)

    def close(self) -> None:
        self.server.close()
        self.control.close()
        super().close()


@pytest.fixture
def engine(built: tuple[TouchDesigner, Operator]) -> Iterator[Engine]:
    engine = Engine(*built)
    yield engine
    engine.close()


def test_parameters_json_matches_the_table() -> None:
    assert (FOLDER / "parameters.json").read_text(encoding="utf-8") == touchdesigner_parameters.to_json(), (
        "run `python -m bridge.guides.generate`"
    )


def test_every_parameter_has_the_same_name_for_osc_panel_and_touchdesigner(
    built: tuple[TouchDesigner, Operator],
) -> None:
    _, component = built
    about = json.loads((FOLDER / "parameters.json").read_text(encoding="utf-8"))
    rows = {row["address"]: row for rows in about["pages"].values() for row in rows}

    def leaves(node: dict[str, Any]) -> set[str]:
        inside = set[str]().union(*(leaves(child) for child in node.get("CONTENTS", {}).values()))
        return inside | ({node["FULL_PATH"]} if "TYPE" in node else set())

    table = {ROOT + name for name in TABLE if not name.startswith("/hook/")}
    assert set(rows) == table
    assert {path for path in leaves(build_tree({}, {})) if not path.startswith(f"{ROOT}/status/")} == {
        ROOT + name for name in TABLE
    }
    assert {ROOT + panel_row(p)["name"] for p in TABLE.values()} == {ROOT + name for name in TABLE}
    for row in rows.values():
        custom = par(component, row["name"])
        parameter = TABLE[row["address"].removeprefix(ROOT)]
        assert custom.help.startswith(parameter.help)
        if parameter.kind in ("float", "int"):
            assert (custom.min, custom.max, custom.val) == (parameter.low, parameter.high, parameter.default)
            assert (custom.clampMin, custom.clampMax) == (True, True)
        if parameter.choices:
            assert custom.menuNames == list(parameter.choices)
            assert custom.val == parameter.default
    assert len({row["name"] for row in rows.values()}) == len(rows)


def test_presets_and_cues_fill_menus_and_every_preset_has_a_button(
    built: tuple[TouchDesigner, Operator], engine: Engine
) -> None:
    _, component = built
    shipped = [preset.name for preset in PresetLibrary([]).ordered]
    assert par(component, "Preset").menuNames == ["none", *shipped]
    assert len([p for p in component.customPars if p.name.startswith("Recall")]) == len(shipped)
    engine.advance(until=lambda: par(component, "Preset").menuNames == ["none", "lava", "my-look"])
    assert {p.name for p in component.customPars if p.name.startswith("Recall")} == {"Recalllava", "Recallmylook"}
    assert par(component, "Cuegoto").menuNames == ["none", "1", "2", "3"]
    assert par(component, "Cuegoto").menuLabels == ["-", "1 In", "2 Up", "3 Out"]
    commands = list[tuple[str, object]]()
    for name in ("/preset", "/cue/goto"):
        engine.state.on_command(name, lambda value, name=name: commands.append((name, value)))
    par(component, "Recallmylook").pulse()
    engine.advance(until=lambda: commands == [("/preset", "my-look")])
    component.par.Preset = "lava"
    engine.advance(until=lambda: commands[1:] == [("/preset", "lava")])
    par(component, "Presetnow").pulse()
    engine.advance(until=lambda: commands[2:] == [("/preset", "lava")])
    component.par.Cuegoto = "2"
    engine.advance(until=lambda: commands[3:] == [("/cue/goto", "2")])
    component.par.Preset = "none"
    par(component, "Presetnow").pulse()
    engine.status["presets"], engine.status["cues"] = ("none", "other"), ("7 End",)
    engine.advance(until=lambda: par(component, "Cuegoto").menuNames == ["none", "7"])
    engine.advance(0.2)
    assert par(component, "Preset").menuNames == ["none_", "none", "other"]
    assert commands[4:] == [], "a menu without its choice sent a command"
    par(component, "Presetnow").pulse()
    engine.advance(until=lambda: commands[4:] == [("/preset", "none")])


def test_the_network_is_wired_from_in_to_out(built: tuple[TouchDesigner, Operator]) -> None:
    _, component = built
    inner = {name: component.op(name) for name in ("in1", "share", "ndi_out", "shared", "ndi_in", "choose", "out1")}
    wired = {
        (name, c.owner.name) for name, op in inner.items() if op for out in op.outputConnectors for c in out.connections
    }
    out_of = {"in1": ("share", "ndi_out", "choose"), "shared": ("choose",), "ndi_in": ("choose",), "choose": ("out1",)}
    assert wired == {(start, end) for start, ends in out_of.items() for end in ends}
    share, ndi = inner["share"], inner["ndi_out"]
    assert share is not None
    assert ndi is not None
    assert (share.par.active.eval(), share.par.sendername.eval(), ndi.par.active.eval()) == (
        True,
        "phosphene-in",
        False,
    )
    component.par.Transport = "ndi"
    component.par.Sendername = "other"
    assert (share.par.active.eval(), ndi.par.active.eval(), ndi.par.name.eval()) == (False, True, "other")
    source = inner["ndi_in"]
    assert source is not None
    assert source.par.name.eval() == f"{socket.gethostname().upper()} (phosphene-out)"


def test_component_and_engine_stay_in_sync_both_ways(built: tuple[TouchDesigner, Operator], engine: Engine) -> None:
    _, component = built
    engine.state.set("/prompt", ["of the engine"], "test")
    engine.advance(until=lambda: bool(par(component, "Connected").val))
    engine.advance(until=lambda: par(component, "Prompt").val == "of the engine")
    assert engine.state.accepted == 1, "a received value was sent back"
    component.par.Strength = 0.7
    component.par.Prompt = "of the component"
    component.par.Guidancemode = "full"
    component.par.Freeze = True
    engine.advance(until=lambda: engine.state.snapshot().flag("/freeze"))
    snapshot = engine.state.snapshot()
    assert snapshot.real("/strength") == pytest.approx(0.7)
    assert (snapshot.text("/prompt"), snapshot.text("/guidance/mode")) == ("of the component", "full")
    engine.state.set("/strength", [0.2], "a desk")
    engine.state.set("/freeze", [0], "a desk")
    engine.advance(until=lambda: abs(par(component, "Strength").val - 0.2) < 1e-6 and not par(component, "Freeze").val)
    before = engine.state.accepted
    engine.advance(1.0)
    assert engine.state.accepted == before, "values echo back and forth"
    assert engine.state.rejected == 0


def test_a_moving_fader_is_not_pulled_back_by_older_values(
    built: tuple[TouchDesigner, Operator], engine: Engine
) -> None:
    _, component = built
    engine.advance(until=lambda: bool(par(component, "Connected").val))
    engine.advance(0.5)
    shown = []
    for step in range(40):
        component.par.Mix = step / 40
        engine.advance(0.02)
        shown.append(par(component, "Mix").val)
    assert shown == [pytest.approx(step / 40) for step in range(40)]
    engine.advance(until=lambda: engine.state.snapshot().real("/mix") == pytest.approx(39 / 40))


def test_readouts_and_version_check(built: tuple[TouchDesigner, Operator], engine: Engine) -> None:
    _, component = built
    engine.advance(until=lambda: par(component, "Status").val == "live")
    assert [par(component, name).val for name in ("Fps", "Latency", "Cue", "Nextcue", "Error")] == [
        24.5,
        41.0,
        "2",
        "3",
        "",
    ]
    engine.status["version"] = "9.1.0"
    engine.advance(until=lambda: "rebuild the component" in par(component, "Error").val)
    assert "9.1.0" in par(component, "Error").val


def test_it_reconnects_and_passes_the_input_through_meanwhile(
    built: tuple[TouchDesigner, Operator], engine: Engine
) -> None:
    _, component = built
    choose = component.op("choose")
    assert choose is not None
    engine.advance(until=lambda: bool(par(component, "Connected").val))
    engine.advance(until=lambda: choose.par.index.val == 0)
    engine.control.subscriptions.close()
    engine.advance(until=lambda: not par(component, "Connected").val)
    engine.advance(until=lambda: choose.par.index.val == 2)
    assert par(component, "Status").val == "no answer"
    engine.server.close()
    other = OscControl(engine.state, lambda: engine.status)
    engine.server = UdpServer(other, "127.0.0.1", int(component.par.Port.val))
    engine.advance(until=lambda: bool(par(component, "Connected").val) and choose.par.index.val == 0)
    other.close()


def test_send_all_updates_the_engine(built: tuple[TouchDesigner, Operator], engine: Engine) -> None:
    _, component = built
    component.par.Prompt = "from the project file"
    component.par.Seed = 77
    engine.advance(until=lambda: bool(par(component, "Connected").val))
    engine.state.set("/prompt", ["another"], "test")
    engine.state.set("/seed", [5], "test")
    engine.advance(until=lambda: par(component, "Seed").val == 5)
    component.par.Seed = 78
    par(component, "Sendall").pulse()
    engine.advance(until=lambda: engine.state.snapshot().whole("/seed") == 78)
    engine.advance(0.3)
    assert engine.state.rejected == 0


def test_start_and_stop_of_the_engine_process(
    built: tuple[TouchDesigner, Operator], engine: Engine, tmp_path: Path
) -> None:
    _, component = built
    extension = component.ext.PhospheneExt
    extension.logPath = str(tmp_path / "log")
    component.par.Arguments = "--seed 3"
    component.par.Transport = "ndi"
    command = extension.Command()
    assert command[1:6] == ["run", "--source", "ndi:phosphene-in", "--sink", "ndi:phosphene-out"]
    assert command[-2:] == ["--seed", "3"]
    component.par.Arguments = r'''--presets "C:\My Shows\a b" --prompt="rain, 'green'"'''
    assert extension.Command()[-3:] == ["--presets", r"C:\My Shows\a b", "--prompt=rain, 'green'"]
    script = tmp_path / "phosphene"
    script.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "print(sys.argv[1:], os.environ.get('PYTHONUTF8'), flush=True)\ntime.sleep(60)\n"
    )
    script.chmod(0o755)
    component.par.Program = str(script)
    par(component, "Start").pulse()
    engine.advance(until=lambda: extension.process is not None)
    process = extension.process
    engine.advance(until=lambda: (tmp_path / "log").read_text(encoding="utf-8").endswith(" 1\n"))
    par(component, "Start").pulse()
    engine.advance(0.2)
    assert extension.process is process, "a second process was started"
    par(component, "Stop").pulse()
    engine.advance(until=lambda: process.poll() is not None)
    engine.advance(0.6)
    assert par(component, "Error").val == ""
    script.write_text(f"#!{sys.executable}\nprint('port in use', flush=True)\nraise SystemExit(3)\n")
    par(component, "Start").pulse()
    engine.advance(until=lambda: par(component, "Error").val == "Phosphene ended (3): port in use")
    component.par.Program = str(tmp_path / "nothing")
    par(component, "Start").pulse()
    engine.advance(until=lambda: "cannot be started" in par(component, "Error").val)
    component.par.Arguments = '--presets "C:\\My Shows'
    par(component, "Start").pulse()
    engine.advance(until=lambda: "not closed" in par(component, "Error").val)


def test_deleting_the_component_stops_its_engine(built: tuple[TouchDesigner, Operator], tmp_path: Path) -> None:
    _, component = built
    script = tmp_path / "phosphene"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    script.chmod(0o755)
    component.par.Program = str(script)
    component.ext.PhospheneExt.Start()
    process = component.ext.PhospheneExt.process
    assert process.poll() is None
    component.destroy()
    process.wait(5)


def test_rebuilding_replaces_the_component(built: tuple[TouchDesigner, Operator]) -> None:
    touch, component = built
    import build

    rebuilt = build.build(touch.project)
    assert touch.project.op("Phosphene") is rebuilt
    assert rebuilt is not component


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c: c.create("spoutinTOP", "x"),
        lambda c: c.op("share").par.sender,
        lambda c: c.appendCustomPage("X").appendFloat("Two_words"),
        lambda c: c.appendCustomPage("X").appendFloat("two"),
        lambda c: c.appendCustomPage("X").appendSlider("Two"),
        lambda c: c.op("osc_out").outputConnectors[0],
        lambda c: c.op("in1").outputConnectors[0].connect(c.op("out1").outputConnectors[0]),
        lambda c: setattr(c, "colour", 1),
        lambda c: setattr(c.par, "Transport", "carrier pigeon"),
        lambda c: c.op("in1").sendOSC("/x", [1]),
    ],
)
def test_the_simulation_rejects_what_touchdesigner_lacks(
    built: tuple[TouchDesigner, Operator], misuse: Callable[[Operator], object]
) -> None:
    with pytest.raises((Unsupported, IndexError)):
        misuse(built[1])


def test_only_documented_operators_are_used(built: tuple[TouchDesigner, Operator]) -> None:
    import build

    assert {kind for kind, _, _ in build.OPERATORS.values()} <= set(OPERATORS)


def test_the_component_replaces_no_other_file(built: tuple[TouchDesigner, Operator], tmp_path: Path) -> None:
    import build

    mine = tmp_path / "show.toe"
    mine.write_text("mine")
    with pytest.raises(ValueError, match="choose another name"):
        build.tox(str(mine))
    assert mine.read_text() == "mine"
    assert build.tox(str(tmp_path / "Phosphene.tox")) == str(tmp_path / "Phosphene.tox")
