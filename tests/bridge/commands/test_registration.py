"""Commands are found in their folder: a new file is listed, parsed and run, and only the called one is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import cli, commands

GREET = '''"""``phosphene greet``: says hello."""

import argparse

from bridge.commands.options import add_option
from bridge.errors import UserError

HELP = "say hello to somebody"
OLD_NAMES = {"hail": "loud"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--name", default="world", help="who is greeted")


def add_old_name(parser: argparse.ArgumentParser, meaning: str) -> None:
    add_arguments(parser)
    parser.set_defaults(name=meaning)


def main(options: argparse.Namespace) -> int:
    if options.name == "nobody":
        raise UserError("there is nobody to greet")
    print(f"hello, {options.name}")
    return 0
'''


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "greet.py").write_text(GREET, encoding="utf-8")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    cli.find_commands.cache_clear()
    yield
    cli.find_commands.cache_clear()
    sys.modules.pop("bridge.commands.greet", None)


@pytest.mark.usefixtures("greet")
def test_a_new_file_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listing = capsys.readouterr().out
    assert "say hello to somebody" in listing
    assert "old name of `greet loud`" in listing
    assert cli.main(["greet", "--name", "stage"]) == 0
    assert cli.main(["hail"]) == 0
    assert capsys.readouterr().out == "hello, stage\nhello, loud\n"
    assert cli.main(["greet", "--name", "nobody"]) == 2
    assert capsys.readouterr().err == "phosphene: there is nobody to greet\n"


def test_the_commands_are_those_of_the_folder() -> None:
    names = {"bench", "doctor", "presets", "render", "report", "run", "sources", "stress"}
    assert names <= set(cli.find_commands())
    assert cli.find_commands()["stress"].old_names == {"faults": "faults", "floods": "load", "soak": "soak"}


def test_only_the_called_command_is_imported() -> None:
    code = (
        "import sys; from bridge.cli import build_parser; build_parser(['sources']);"
        "print(sorted(name for name in sys.modules if name.startswith('bridge.commands.')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['bridge.commands.sources']"
