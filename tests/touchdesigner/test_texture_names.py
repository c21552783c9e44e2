"""Names of textures as TouchDesigner lists them, and the arguments of the engine that it starts."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import Wire, built, par

__all__ = ["built"]  # a fixture
HERE = socket.gethostname().upper()


@pytest.fixture
def names(built: tuple[TouchDesigner, Operator]) -> Any:
    operator = built[1].op("texture_names")
    assert operator is not None
    return operator.module


@pytest.fixture
def arguments(built: tuple[TouchDesigner, Operator]) -> Any:
    operator = built[1].op("arguments")
    assert operator is not None
    return operator.module


@pytest.mark.parametrize(
    ("listed", "current", "selected"),
    [
        ([], "", "phosphene-out"),
        (["phosphene-out", "Arena - Composition"], "", "phosphene-out"),
        (["Arena:Composition", "Python:phosphene-out"], "", "Python:phosphene-out"),
        (["Python:phosphene-out-2", "Python:not phosphene-out"], "", "phosphene-out"),
        ([":phosphene-out"], "", ":phosphene-out"),
        (["A:phosphene-out", "B:phosphene-out"], "B:phosphene-out", "B:phosphene-out"),
        (["A:phosphene-out"], "B:phosphene-out", "A:phosphene-out"),
    ],
)
def test_the_texture_sender(names: Any, listed: list[str], current: str, selected: str) -> None:
    assert names.match_sender(listed, "phosphene-out", current) == selected


@pytest.mark.parametrize(
    ("host", "listed", "selected"),
    [
        ("stage", [], "STAGE (phosphene-out)"),
        ("stage", ["STAGE (phosphene-out)", "B (phosphene-out)"], "STAGE (phosphene-out)"),
        ("mac.local", ["MAC.LOCAL (phosphene-out)"], "MAC.LOCAL (phosphene-out)"),
        ("mac.local", ["B (phosphene-out)", "MAC (phosphene-out)"], "MAC (phosphene-out)"),
        ("visuals-workstation-2", ["VISUALS-WORKSTA (phosphene-out)", "B (phosphene-out)"],
         "VISUALS-WORKSTA (phosphene-out)"),
        ("stage", ["B (phosphene-out)", "B (phosphene-in)"], "B (phosphene-out)"),
        ("stage", ["B (phosphene-out)", "C (phosphene-out)"], "STAGE (phosphene-out)"),
        ("stage", ["STAGE (not phosphene-out)", "B (x (phosphene-out))"], "STAGE (phosphene-out)"),
    ],
)  # fmt: skip
def test_the_ndi_source(
    monkeypatch: pytest.MonkeyPatch, names: Any, host: str, listed: list[str], selected: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert names.match_ndi_source(listed, "phosphene-out") == selected


def test_the_component_follows_what_touchdesigner_lists(built: tuple[TouchDesigner, Operator]) -> None:
    touch, component = built
    wire = Wire(touch, component, 9)
    shared, ndi = component.op("shared"), component.op("ndi_in")
    assert shared is not None
    assert ndi is not None
    wire.advance(0.1)
    assert shared.par.sendername.eval() == "phosphene-out"
    shared.par.sendername._menu = ["TouchDesigner:phosphene-in", "Python:phosphene-out"]
    wire.advance(until=lambda: shared.par.sendername.eval() == "Python:phosphene-out")
    shared.par.sendername._menu = []
    wire.advance(until=lambda: shared.par.sendername.eval() == "phosphene-out")
    component.par.Receivername = "second"
    wire.advance(until=lambda: shared.par.sendername.eval() == "second")
    component.par.Transport = "ndi"
    ndi.par.name._menu = ["B (second)"]
    wire.advance(until=lambda: ndi.par.name.eval() == "B (second)")
    ndi.par.name._menu = ["B (second)", f"{HERE} (second)"]
    wire.advance(until=lambda: ndi.par.name.eval() == f"{HERE} (second)")
    component.par.Ndisource = "C (other)"
    wire.advance(until=lambda: ndi.par.name.eval() == "C (other)")
    assert par(component, "Error").val == ""
    wire.close()


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  --seed  3 ", ["--seed", "3"]),
        (r'--presets "C:\My Shows\a b"', ["--presets", r"C:\My Shows\a b"]),
        (r'--presets="C:\My Shows\a b"', [r"--presets=C:\My Shows\a b"]),
        (r"--presets C:\shows\new --seed 3", ["--presets", r"C:\shows\new", "--seed", "3"]),
        (r'"C:\My Shows\" --seed 3', ["C:\\My Shows\\", "--seed", "3"]),
        (r'\\server\share\x "\\server\My Shows"', [r"\\server\share\x", r"\\server\My Shows"]),
        ("--presets '/Users/me/My Shows'", ["--presets", "/Users/me/My Shows"]),
        ("--presets='/Users/me/My Shows' --seed 3", ["--presets=/Users/me/My Shows", "--seed", "3"]),
        ('--presets "/Users/me/My Shows/éa"', ["--presets", "/Users/me/My Shows/éa"]),
        (r"C:\Users\O'Brien\a C:\Users\O'Brien\b", [r"C:\Users\O'Brien\a", r"C:\Users\O'Brien\b"]),
        ('--prompt "it\'s raining"', ["--prompt", "it's raining"]),
        ("--prompt 'a \"red\" cat'", ["--prompt", 'a "red" cat']),
        ('--prompt "" --seed 3', ["--prompt", "", "--seed", "3"]),
        ("--prompt #3", ["--prompt", "#3"]),
        ("--a\n--b\t--c", ["--a", "--b", "--c"]),
    ],
)
def test_arguments_are_split_at_blanks_outside_quotes(
    monkeypatch: pytest.MonkeyPatch, arguments: Any, platform: str, text: str, words: list[str]
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert arguments.split_arguments(text) == words


def test_a_backslash_before_a_blank(monkeypatch: pytest.MonkeyPatch, arguments: Any) -> None:
    text = "--presets /Users/me/My\\ Shows/x"
    monkeypatch.setattr("sys.platform", "darwin")
    assert arguments.split_arguments(text) == ["--presets", "/Users/me/My Shows/x"]
    monkeypatch.setattr("sys.platform", "win32")
    assert arguments.split_arguments("--presets C:\\shows\\ --seed 3") == ["--presets", "C:\\shows\\", "--seed", "3"]


@pytest.mark.parametrize("text", ['"C:\\My Shows', '--presets "a b" "c', 'a"'])
def test_a_quote_that_is_not_closed(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match="not closed"):
        arguments.split_arguments(text)
