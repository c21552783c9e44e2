"""The files that start Phosphene by a double-click: macOS' with stand-ins, Windows' by its text alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.sources import ROOT
from tests.programs import needs_shell, write_program

GUIDES = ROOT / "bridge" / "guides"
WINDOWS, MACOS = GUIDES / "start-windows.bat", GUIDES / "start-macos.command"
#: What a stand-in for Python does: it says where it is and what it was started with, and ends with the code in CODE.
PYTHON = 'if [ "$1" = -c ]; then exit 0; fi; printf "%s|" "$PWD" "$@"; echo; exit ${CODE:-0}'


class Mac:
    """A checkout in a folder with blanks, and a PATH with stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "my shows" / "phosphene (new) & old"
        self.programs = folder / "programs"
        self.start_file = self.checkout / "bridge" / "guides" / MACOS.name
        self.start_file.parent.mkdir(parents=True)
        (self.checkout / "bridge" / "bootstrap.py").write_text("", encoding="utf-8")
        shutil.copy(MACOS, self.start_file)
        write_program(self.programs / "dirname", 'path="$2"; echo "${path%/*}"')
        write_program(self.programs / "uname", "echo Darwin")

    def start(self, *arguments: str, code: int = 0) -> tuple[int, list[str]]:
        """Start it from another folder, with a Return key waiting; return its code and lines."""
        environment = {"PATH": str(self.programs), "CODE": str(code), "CDPATH": "/", "HOME": str(self.programs)}
        bash = shutil.which("bash")
        assert bash
        result = subprocess.run(
            [bash, str(self.start_file), *arguments],
            input="\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=environment,
            timeout=30,
        )
        return result.returncode, result.stdout.splitlines()


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path)


@needs_shell
@pytest.mark.parametrize("name", ["python3", "python3.12", "python3.14"])
def test_it_runs_the_first_command_in_the_checkout(mac: Mac, name: str) -> None:
    write_program(mac.programs / name, PYTHON)
    assert mac.start("--prompt", "two words") == (
        0,
        [f"{mac.checkout}|-m|bridge.bootstrap|run|--prompt|two words|"],
    )


@needs_shell
def test_a_new_enough_python_comes_before_the_systems(mac: Mac) -> None:
    write_program(mac.programs / "python3", "exit 9")
    write_program(mac.programs / "python3.13", "exit 1")
    write_program(mac.programs / "python3.11", PYTHON)
    assert mac.start()[0] == 0


@needs_shell
def test_the_window_stays_open_when_something_is_wrong(mac: Mac) -> None:
    write_program(mac.programs / "python3", PYTHON)
    code, lines = mac.start(code=2)
    assert code == 2
    assert lines[-3:] == [
        "Phosphene ended with an error, code 2. The lines above say why.", "", "Press Return to close."
    ]  # fmt: skip


@needs_shell
def test_without_python_it_says_where_to_get_one(mac: Mac) -> None:
    write_program(mac.programs / "python3", "exit 72")  # does not start
    code, lines = mac.start()
    assert code == 127
    assert "Python was not found. Install Python 3.13 from https://www.python.org/downloads/macos/" in lines
    assert lines[-1] == "Press Return to close."


@needs_shell
def test_away_from_the_checkout_it_says_so(mac: Mac) -> None:
    (mac.checkout / "bridge" / "bootstrap.py").unlink()
    code, lines = mac.start()
    assert code == 1
    assert lines[1].startswith("Phosphene's files are not beside this one.")


def test_it_can_be_executed_and_bash_3_parses_it() -> None:
    assert os.name == "nt" or os.access(MACOS, os.X_OK)
    text = MACOS.read_bytes()
    assert text.startswith(b"#!/bin/bash\n")
    assert b"\r" not in text
    for newer in (b"${EPOCH", b"mapfile", b"declare -A", b"&>>", b"|&", b"coproc"):
        assert newer not in text


def windows_lines() -> list[str]:
    return WINDOWS.read_bytes().decode("ascii").split("\r\n")


def test_the_windows_file_has_windows_lines_and_git_keeps_them() -> None:
    data = WINDOWS.read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n") > 20
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "*.bat text eol=crlf" in attributes
    assert "*.command text eol=lf" in attributes


def test_the_windows_file_runs_the_first_command_in_its_checkout() -> None:
    lines = windows_lines()
    assert lines[0] == "@echo off"
    assert 'pushd "%~dp0..\\.."' in lines  # in quotes: blanks; pushd: \\server\share
    assert "%PYTHON% -m bridge.bootstrap run %*" in lines
    assert not [line for line in lines if re.match(r"cd\b", line)]
    assert (ROOT / "bridge" / "guides" / ".." / ".." / "bridge" / "bootstrap.py").is_file()
    assert 'if not exist "bridge\\bootstrap.py" goto no_folder' in lines


def test_every_error_of_the_windows_file_waits_for_a_key() -> None:
    """Walk from each label: all but the good end pass ``pause``, and every goto has its label."""
    lines = windows_lines()
    labels = {line[1:]: i for i, line in enumerate(lines) if line.startswith(":")}
    targets = {target for line in lines for target in re.findall(r"goto (\w+)", line)}
    assert targets == set(labels) == {"no_folder", "start", "wrong", "end"}
    pause, end = lines.index("pause"), labels["end"]
    assert labels["no_folder"] < labels["wrong"] < pause < end
    assert not [line for line in lines[labels["no_folder"] : pause] if line.startswith(("goto", "exit"))]
    reports = [i for i, line in enumerate(lines) if line.startswith('set "CODE=') and "ERRORLEVEL" not in line]
    after = [next(line for line in lines[i + 1 :] if line and not line.startswith(("rem", "echo"))) for i in reports]
    assert after == ["goto wrong", ":wrong"]
    assert lines[labels["start"] + 2 : labels["start"] + 4] == [
        'set "CODE=%ERRORLEVEL%"', 'if "%CODE%"=="0" goto end'
    ]  # fmt: skip
    assert "endlocal & exit /b %CODE%" in lines
    assert any("https://www.python.org/downloads/windows/" in line for line in lines)


@pytest.mark.parametrize("path", [WINDOWS, MACOS], ids=lambda path: path.name)
def test_both_say_that_they_were_never_run(path: Path) -> None:
    assert "Never run on" in path.read_text(encoding="utf-8")
