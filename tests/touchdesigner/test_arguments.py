"""The arguments of the engine that the component starts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import built

__all__ = ["built"]  # a fixture


@pytest.fixture
def arguments(built: tuple[TouchDesigner, Operator]) -> Any:
    operator = built[1].op("arguments")
    assert operator is not None
    return operator.module


@pytest.mark.parametrize(("platform", "scheme"), [("win32", "spout"), ("darwin", "syphon"), ("linux", "spout")])
def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, built: tuple[TouchDesigner, Operator], platform: str, scheme: str
) -> None:
    _, component = built
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", "/home-of-me")
    component.par.Program = r'"C:\My Shows\phosphene.exe"'
    component.par.Sendername = "deck in"
    assert component.ext.PhospheneExt.Command() == [
        r"C:\My Shows\phosphene.exe", "run", "--source", f"{scheme}:deck in", "--sink", f"{scheme}:phosphene-out",
        "--osc-port", "9000", "--http-port", "9001",
    ]  # fmt: skip
    component.par.Program = "~/phosphene/.venv/bin/phosphene"
    assert component.ext.PhospheneExt.Command()[0] == "/home-of-me/phosphene/.venv/bin/phosphene"
    component.par.Program = " "
    assert component.ext.PhospheneExt.Command()[0] == "phosphene"


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
