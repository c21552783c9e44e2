"""Desk maps: what foreign messages become, what a wrong map says, and learning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pythonosc.osc_message_builder import OscMessageBuilder

from bridge.control.mapping import ControllerMap, load, names, read
from bridge.control.state import State
from bridge.osc.dispatch import OscControl
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def table(**settings: object) -> str:
    def said(value: object) -> str:
        return repr(value) if not isinstance(value, bool) else str(value).lower()

    return "[[map]]\n" + "\n".join(f"{name.rstrip('_')} = {said(value)}" for name, value in settings.items()) + "\n"


@pytest.mark.parametrize("name", names())
def test_every_shipped_map_is_right(name: str) -> None:
    entries = load(name)
    assert entries
    assert all(entry.to in TABLE for entry in entries)


def test_ranges_buttons_and_caught_parts() -> None:
    state = State()
    desks = ControllerMap(state, ["grandma3", "eos", "touchosc", "resolume"])
    heard: list[str] = []
    for command in ("/cue/goto", "/preset"):
        state.on_command(command, lambda value, command=command: heard.append(f"{command} {value}"))
    for trigger in ("/cue/go", "/panic"):
        state.on_trigger(trigger, lambda trigger=trigger: heard.append(trigger))
    for address, arguments in (
        ("/Page1/Fader201", [50]), ("/Page1/Fader202", [100.0]), ("/1/fader5", [0.5]), ("/composition/tempocontroller/tempo", [0.25]),
        ("/1/toggle1", [1.0]), ("/Page1/Key202", [1]), ("/Page1/Key202", [0]), ("/1/push4", []), ("/eos/out/event/cue/1/2.5/fire", []),
        ("/composition/layers/1/clips/7/connect", [1]), ("/composition/layers/1/clips/7/connect", [0]),
    ):  # fmt: skip
        assert desks.take(address, arguments, "a desk"), address
    snapshot = state.snapshot()
    assert (snapshot["/master"], snapshot["/strength"], snapshot["/blackout"]) == (0.5, 1.0, True)
    assert snapshot["/tempo"] == pytest.approx(140.0), "a quarter of 20 to 500"
    assert heard == ["/cue/go", "/panic", "/cue/goto 2.5", "/preset 7"], "a button that is let go does nothing"
    assert state.rejected == 0
    assert not desks.take("/nobody/knows", [1], "a desk")
    assert desks.take("/Page1/Fader201", ["loud"], "a desk")
    assert desks.take("/Page1/Fader201", [float("nan")], "a desk")
    assert state.rejected == 2
    assert state.snapshot()["/master"] == 0.5


def test_a_map_works_alongside_the_builtin_addresses() -> None:
    state = State()
    control = OscControl(state, controllers=ControllerMap(state, ["grandma3"]))

    def send(address: str, value: float) -> None:
        builder = OscMessageBuilder(address)
        builder.add_arg(value)
        control.handle_packet(builder.build().dgram, "a desk")

    send("/Page1/Fader201", 25.0)
    send("/phosphene/strength", 0.75)
    send("/Page9/Fader1", 1.0)
    assert (state.snapshot()["/master"], state.snapshot()["/strength"]) == (0.25, 0.75)
    assert state.rejected == 1
    assert "no desk map knows it" in state.last_rejection
    control.close()


def test_the_next_message_is_learnt_kept_and_there_at_the_next_start(tmp_path: Path) -> None:
    state = State()
    desks = ControllerMap(state, ["touchosc"], tmp_path / "desks")
    state.set("/learn", ["strength"], "panel")
    assert desks.learning == "/strength"
    assert desks.take("/midi/cc/1/20", [64], "a controller")
    assert desks.learning == ""
    assert desks.take("/midi/cc/1/20", [127], "a controller")
    assert state.snapshot()["/strength"] == 1.0
    state.set("/learn", ["/mix"], "panel")
    desks.take("/1/fader1", [0.3], "a tablet")
    desks.take("/1/fader1", [0.25], "a tablet")
    assert (state.snapshot()["/mix"], state.snapshot()["/master"]) == (0.25, 1.0), "it leaves what it was bound to"
    assert desks.problems == ["/1/fader1 was bound to /master by touchosc; it is /mix now"]
    state.set("/learn", ["nothing"], "panel")
    assert state.rejected == 1
    state.set("/learn", ["off"], "panel")
    assert desks.learning == ""

    again = State()
    later = ControllerMap(again, ["touchosc"], tmp_path / "desks")
    later.take("/midi/cc/1/20", [127], "a controller")
    later.take("/1/fader1", [0.5], "a tablet")
    assert (again.snapshot()["/strength"], again.snapshot()["/mix"], again.snapshot()["/master"]) == (1.0, 0.5, 1.0)


def test_what_two_maps_want_of_one_address_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "mine.toml", table(address="/1/fader1", to="/mix") + table(address="/1/fader2", to="/strength"))
    with caplog.at_level(logging.WARNING):
        desks = ControllerMap(State(), ["touchosc", "mine"], tmp_path)
    assert desks.problems == ["/1/fader1 is bound to /master by touchosc and to /mix by mine; the last one counts"]
    assert desks.problems[0] in caplog.text
    assert sum(entry.address == "/1/fader1" for entry in desks.entries) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (table(address="fader", to="/mix"), "line 2: address begins with /"),
        (table(address="/a", to="/nowhere"), "line 3: no parameter is called"),
        (table(address="/a", to="/mix", from_=[1, 1]), "line 4: from is two numbers"),
        (table(address="/a", to="/mix", range=[0]), "line 4: range is two numbers"),
        (table(address="/a", to="/mix", argument=-1), "line 4: argument counts from 0"),
        (table(address="/a", to="/steps", value="many"), "line 4: /steps takes a number"),
        (table(address="/a", to="/mix", speed=3), "line 4: no setting is called 'speed'"),
        (table(address="/{a}/{a}", to="/mix"), "cannot be a pattern"),
        ("colour = 1\n", "not 'colour'"),
        ("[[map]\n", "no TOML"),
    ],
)
def test_a_wrong_map_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=told) as raised:
        read(write(tmp_path / "bad.toml", text), "bad")
    assert "\n" not in str(raised.value)
    for name in ("../bad", "no such", "/etc/passwd"):
        with pytest.raises(InvalidValue, match="desk map"):
            load(name, tmp_path)
