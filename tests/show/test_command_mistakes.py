"""A user's mistake is one line and exit code 2, whichever way and whichever command is started."""

from __future__ import annotations

import subprocess
import sys

import pytest

MISTAKES = {
    "render": (["render", "nowhere", "out.mp4"], "no such file or folder"),
    "stress": (["stress", "faults", "--only", "lightning"], "lightning"),
    "stress, old name": (["floods", "--seconds", "0"], "--seconds takes 1 or more"),
    "presets": (["presets", "--presets", "nowhere"], "--presets takes a folder"),
    "report": (["report", "out.zip", "--log", "nowhere"], "no such file"),
    "bench": (["bench", "--only", "colours"], "colours"),
    "parameter": (["render", "nowhere", "out.mp4", "--strength", "loud"], "/strength"),
}


@pytest.mark.parametrize("module", ["bridge", "bridge.cli"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(module: str, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    result = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("phosphene: ")
    assert expected in line


@pytest.mark.parametrize("name", ["faults", "load", "soak"])
def test_a_stress_test_has_its_old_name_too(name: str) -> None:
    def options(*command: str) -> str:
        result = subprocess.run([sys.executable, "-m", "bridge", *command, "--help"], capture_output=True, text=True)
        assert result.returncode == 0
        return result.stdout.partition("\noptions:")[2]

    assert options("stress", name) == options({"load": "floods"}.get(name, name))


def test_old_spellings_of_options_are_accepted() -> None:
    from bridge.cli import build_parser

    renamed = build_parser().parse_args(["run", "--session", "x.json", "--no-resume", "--no-standby"])
    assert build_parser().parse_args(["run", "--journal", "x.json", "--fresh", "--no-spare"]) == renamed
    assert (renamed.session, renamed.resume, renamed.standby) == ("x.json", False, False)


def test_every_help_names_its_default_once() -> None:
    from bridge.cli import build_parser

    help_text = build_parser()._subparsers._group_actions[0].choices["run"].format_help()  # type: ignore[union-attr]
    assert "(default: 9000)" in " ".join(help_text.split())
    assert "(default: None)" not in help_text
    assert "(default: False)" not in help_text
