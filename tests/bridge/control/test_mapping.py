"""Desk maps: how foreign messages are converted, messages about broken maps, and learn."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pythonosc.osc_message_builder import OscMessageBuilder

from bridge.control.map_file import MAX_BINDINGS, compile_address, load_map, map_names, read_map
from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.osc.dispatch import OscControl
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE
from tests.bridge.performance.rig import write


def table(**settings: object) -> str:
    """Return a ``[[map]]`` table; ``from_`` is the key ``from``."""

    def literal(value: object) -> str:
        return repr(value) if not isinstance(value, bool) else str(value).lower()

    return "[[map]]\n" + "\n".join(f"{name.rstrip('_')} = {literal(value)}" for name, value in settings.items()) + "\n"


@pytest.mark.parametrize("name", map_names())
def test_every_shipped_map_is_valid(name: str) -> None:
    bindings = load_map(name)
    assert bindings
    assert all(binding.to in TABLE for binding in bindings)


def test_ranges_buttons_and_captured_parts() -> None:
    state = State()
    desks = ControllerMap(state, ["grandma3", "eos", "touchosc", "resolume"])
    commands: list[str] = []
    for command in ("/cue/goto", "/preset"):
        state.on_command(command, lambda value, command=command: commands.append(f"{command} {value}"))
    for trigger in ("/cue/go", "/panic"):
        state.on_trigger(trigger, lambda trigger=trigger: commands.append(trigger))
    for address, arguments in (
        ("/Page1/Fader201", [50]),
        ("/Page1/Fader202", [100.0]),
        ("/1/fader5", [0.5]),
        ("/composition/tempocontroller/tempo", [0.25]),
        ("/1/toggle1", [1.0]),
        ("/Page1/Key202", [1]),
        ("/Page1/Key202", [0]),
        ("/1/push4", []),
        ("/eos/out/event/cue/1/2.5/fire", []),
        ("/composition/layers/1/clips/7/connect", [1]),
        ("/composition/layers/1/clips/7/connect", [0]),
    ):
        assert desks.handle(address, arguments, "a desk"), address
    snapshot = state.snapshot()
    assert (snapshot["/master"], snapshot["/strength"], snapshot["/blackout"]) == (0.5, 1.0, True)
    assert snapshot["/tempo"] == pytest.approx(140.0), "a quarter of 20 to 500"
    assert commands == ["/cue/go", "/panic", "/cue/goto 2.5", "/preset 7"], "the release of a button sends nothing"
    assert state.rejected == 0
    assert not desks.handle("/unknown/address", [1], "a desk")
    assert desks.handle("/Page1/Fader201", ["loud"], "a desk")
    assert desks.handle("/Page1/Fader201", [float("nan")], "a desk")
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


def test_the_next_message_is_learned_and_saved(tmp_path: Path) -> None:
    state = State()
    desks = ControllerMap(state, ["touchosc"], tmp_path / "desks")
    state.set("/learn", ["strength"], "panel")
    assert desks.learning == "/strength"
    assert desks.handle("/midi/cc/1/20", [64], "a controller")
    assert desks.learning == ""
    assert desks.handle("/midi/cc/1/20", [127], "a controller")
    assert state.snapshot()["/strength"] == 1.0
    state.set("/learn", ["/mix"], "panel")
    desks.handle("/1/fader1", [0.3], "a tablet")
    desks.handle("/1/fader1", [0.25], "a tablet")
    assert (state.snapshot()["/mix"], state.snapshot()["/master"]) == (0.25, 1.0), (
        "the learned binding replaces the shipped one"
    )
    assert desks.problems == ["/1/fader1 was bound to /master by touchosc; it is /mix now"]
    state.set("/learn", ["nothing"], "panel")
    assert state.rejected == 1
    state.set("/learn", ["off"], "panel")
    assert desks.learning == ""

    second_state = State()
    later = ControllerMap(second_state, ["touchosc"], tmp_path / "desks")
    later.handle("/midi/cc/1/20", [127], "a controller")
    later.handle("/1/fader1", [0.5], "a tablet")
    assert (
        second_state.snapshot()["/strength"],
        second_state.snapshot()["/mix"],
        second_state.snapshot()["/master"],
    ) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize("kind", ["link", "folder", "broken", "other"])
def test_what_is_no_map_is_not_replaced_by_learned_bindings(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "learned.toml"
    state = State()
    desks = ControllerMap(state, [], tmp_path)
    if kind == "link":
        (tmp_path / "mine.toml").write_text(table(address="/1/fader1", to="/mix"))
        path.symlink_to("mine.toml")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text('[[map]]\naddress = "/half' if kind == "broken" else "strength = 0.5\n")
    before = [(file.name, file.is_file() and file.read_text()) for file in sorted(tmp_path.iterdir())]
    state.set("/learn", ["strength"], "panel")
    assert desks.handle("/midi/cc/1/20", [127], "a controller")
    assert "the learned bindings cannot be saved" in caplog.text
    assert [(file.name, file.is_file() and file.read_text()) for file in sorted(tmp_path.iterdir())] == before
    assert desks.handle("/midi/cc/1/20", [127], "a controller")
    assert state.snapshot()["/strength"] == 1.0, "they are in use all the same"


def test_learned_bindings_are_bounded_and_cost_little() -> None:
    state = State()
    desks = ControllerMap(state)
    for i in range(MAX_BINDINGS + 100):
        desks.learn("/strength")
        assert desks.handle(f"/x{i}", [0.5], "a desk")
    assert len(desks.bindings) == MAX_BINDINGS
    assert state.rejected == 100
    assert "there are 2000 learned bindings already" in state.last_rejection
    desks.handle("/nothing", [1.0], "a desk")
    compiled = compile_address.cache_info().misses
    desks.handle("/nothing", [1.0], "a desk")
    assert compile_address.cache_info().misses == compiled, "no pattern is compiled for a message"
    desks.learn("/mix")
    desks.handle("/x7", [0.5], "a desk")
    assert [entry.to for entry in desks.bindings if entry.address == "/x7"] == ["/mix"], "a known one may change"


def test_an_address_bound_by_two_maps_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "mine.toml", table(address="/1/fader1", to="/mix") + table(address="/1/fader2", to="/strength"))
    with caplog.at_level(logging.WARNING):
        desks = ControllerMap(State(), ["touchosc", "mine"], tmp_path)
    assert desks.problems == ["/1/fader1 is bound to /master by touchosc and to /mix by mine; the last one counts"]
    assert desks.problems[0] in caplog.text
    assert sum(binding.address == "/1/fader1" for binding in desks.bindings) == 1


FIVE_BINDINGS = """title = "Five bindings"
[[map]]
address = "/first"
to = "/master"
from = [0, 100]

[[map]]
address = "/second"
to = "/strength"
argument = 1
[[map]]
address = "/third"
to = "/mix"
[[map]]
address = "/fourth"
to = '/seed'
FOURTH
[[map]]
address = "/fifth"
to = "/feedback"
from = [0, 100]
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(address="fader", to="/mix"), "line 2: address begins with /"),
        (table(address="/a", to="/nowhere"), "line 3: unknown parameter"),
        (table(address="/a", to="/mix", from_=[1, 1]), r"line 4: from takes two different numbers, got \[1.0, 1.0\]"),
        (table(address="/a", to="/mix", range=[0]), r"line 4: range takes a list of 2 values, got \[0\]"),
        (table(address="/a", to="/mix", argument=-1), "line 4: argument takes an index from 0 to 63, got -1"),
        (table(address="/a", to="/steps", value="many"), "line 4: /steps takes a number"),
        (
            table(address="/a", to="/mix", speed=3),
            "line 4: unknown key 'speed'; the keys are address, to, argument, from, range, value",
        ),
        (table(address="/a"), "line 1: the key 'to' is missing"),
        (table(address="/a", to=3), "line 3: to takes text, got 3"),
        (table(address="/a", to="/mix", range=[0, "x"]), "line 4: range takes a number, got 'x'"),
        (table(address="/a", to="/mix", value=True), "line 4: value takes a number or text, got True"),
        ("[[map]]\naddress = '/a'\nto = '/mix'\nfrom = [0, inf]\n", "line 4: from takes two finite numbers"),
        (FIVE_BINDINGS.replace("FOURTH", "from = [0]"), "line 17: from takes a list of 2 values"),
        (FIVE_BINDINGS.replace("FOURTH", "speed = 1"), "line 17: unknown key 'speed'"),
        (FIVE_BINDINGS.replace("FOURTH", "\n'argument' = 'x'"), "line 18: argument takes a whole number, got 'x'"),
        (FIVE_BINDINGS.replace("FOURTH", "").replace("/fourth", "fourth"), "line 15: address begins with /"),
        (FIVE_BINDINGS.replace("FOURTH", "").replace("'/seed'", "'/nowhere'"), "line 16: unknown parameter"),
        (table(address="/{a}/{a}", to="/mix"), "line 2: .* is not a valid pattern"),
        ("title = 1\ncolour = 1\n", "line 2: unknown key 'colour'; the keys are title, map"),
        ("[[map]\n", "not valid TOML"),
    ],
)
def test_a_broken_map_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=message) as raised:
        read_map(write(tmp_path / "bad.toml", text), "bad")
    assert "\n" not in str(raised.value)
    for name in ("../bad", "no such", "/etc/passwd"):
        with pytest.raises(InvalidValue, match="desk map"):
            load_map(name, tmp_path)
