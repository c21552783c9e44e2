"""``phosphene doctor`` on machines with a card: a stand-in for nvidia-smi, and the real probe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bridge.commands import doctor
from tests.programs import NO_CARD, needs_linux, nvidia_smi, write_program


def read_lines(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line[5:].split(" ")[0] == name]


@needs_linux
@pytest.mark.parametrize(
    ("driver", "mark", "text"),
    [
        ("551.23", "no", "--index-url https://download.pytorch.org/whl/cu126"),
        ("", "ok", "none is unused"),
    ],
)
def test_a_card_that_is_not_used_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    driver: str,
    mark: str,
    text: str,
) -> None:
    for name, value in {**NO_CARD, "PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    if driver:
        write_program(tmp_path / "nvidia-smi", nvidia_smi(f"NVIDIA GeForce RTX 4070, {driver}, 8.9"))
    assert doctor.main() == 0
    (line,) = read_lines(capsys, "card")
    assert line.startswith(mark)
    assert line.endswith(text)


@pytest.mark.parametrize(("minor", "spout"), [(13, "needs the package SpoutGL"), (14, "needs Python 3.13 or older")])
def test_windows_says_what_spout_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], minor: int, spout: str
) -> None:
    monkeypatch.setattr(doctor, "_check_engine", lambda check: None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "version_info", (3, minor, 0))
    assert doctor.main() == 0
    (line,) = read_lines(capsys, "spout:")
    assert line.startswith("no")
    assert spout in line


@pytest.mark.parametrize(
    ("version", "mark"), [((3, 10, 9), "no"), ((3, 11, 0), "ok"), ((3, 14, 2), "ok"), ((3, 15, 0), "no")]
)
def test_the_version_of_python_has_both_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: tuple[int, ...], mark: str
) -> None:
    monkeypatch.setattr(doctor, "_check_engine", lambda check: None)
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.main() == (0 if mark == "ok" else 1)
    (line,) = read_lines(capsys, "Python")
    assert line.startswith(mark)
    assert line.endswith("; needs 3.11 to 3.14") == (mark == "no")
