"""The virtual environment: kept, named or made again, and paths that Windows does not take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bridge.install import environment
from bridge.install.environment import long_path_warning, prepare, problem, python_of, read_version, site_packages
from tests.programs import needs_shell, write_program


def write_environment(folder: Path, config: str, python: str = "exit 0") -> Path:
    """Write an environment with a stand-in for its Python."""
    write_program(folder / "bin" / "python", python)
    (folder / "lib" / "python3.11" / "site-packages" / "pip").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(config, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "version"),
    [
        ("home = /usr/bin\nversion = 3.12.4\n", (3, 12, 4)),
        ("version_info = 3.10.2.final.0\n", (3, 10, 2)),
        ("implementation = CPython\nversion_info=3.13.0\n", (3, 13, 0)),
        ("home = /usr/bin\n", ()),
    ],
)
def test_the_version_is_read_from_the_file(tmp_path: Path, config: str, version: tuple[int, ...]) -> None:
    (tmp_path / "pyvenv.cfg").write_text(config, encoding="utf-8")
    assert read_version(tmp_path) == version


@needs_shell
@pytest.mark.parametrize("version", ["3.10.12", "3.9.6", "3.15.0"])
def test_an_environment_of_a_python_that_does_not_suit_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], version: str
) -> None:
    folder = write_environment(tmp_path / "venv", f"home = {tmp_path}\nversion = {version}\n")
    assert prepare(folder, replace=False) == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"phosphene: {folder} cannot be used: it was made with Python {version}: ")
    assert folder.exists()


@needs_shell
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("home = {folder}\nversion = 3.10.12\n", "it was made with Python 3.10.12"),
        ("home = {folder}/gone\nversion = 3.11.7\n", "the Python that it was made with is gone"),
    ],
)
def test_the_default_environment_is_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], config: str, reason: str
) -> None:
    folder = write_environment(tmp_path / ".venv", config.format(folder=tmp_path))
    (folder / "old").write_text("", encoding="utf-8")
    assert prepare(folder, replace=True) == 0
    assert f"{folder} is made again: {reason}" in capfd.readouterr().err
    assert not (folder / "old").exists()
    assert read_version(folder) == tuple(sys.version_info[:3])
    assert problem(folder) == ""


@needs_shell
def test_an_environment_whose_python_is_gone_is_noticed(tmp_path: Path) -> None:
    folder = write_environment(tmp_path / "venv", f"home = {tmp_path}\nversion = 3.11.7\n")
    assert problem(folder) == ""
    python_of(folder).unlink()
    python_of(folder).symlink_to(tmp_path / "uninstalled")
    assert "is gone" in problem(folder)


@needs_shell
def test_one_that_works_is_kept_whatever_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_environment(tmp_path / "venv", f"home = {tmp_path}\nversion = 3.13.5\n", python="exit 7")
    monkeypatch.setattr(sys, "version_info", (3, 15, 0, "final", 0))
    assert prepare(folder, replace=True) == 0
    assert read_version(folder) == (3, 13, 5)


@needs_shell
def test_one_without_pip_gets_it(tmp_path: Path) -> None:
    config = f"home = {tmp_path}\nversion = 3.13.5\n"
    folder = write_environment(tmp_path / "venv", config, python=f'echo "$*" > "{tmp_path}/call"; exit 3')
    packages = site_packages(folder)
    assert packages is not None
    (packages / "pip").rmdir()
    assert prepare(folder, replace=True) == 3
    assert (tmp_path / "call").read_text(encoding="utf-8") == "-m ensurepip\n"


@needs_shell
def test_windows_with_314_says_that_spout_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for version in ("3.13.5", "3.14.1"):
        folder = write_environment(tmp_path / version, f"home = {tmp_path}\nversion = {version}\n")
        assert prepare(folder, replace=True) == 0
    assert capfd.readouterr().err == (
        f"phosphene: {tmp_path / '3.14.1'} was made with Python 3.14, which Spout has no package for\n"
    )


def test_a_long_folder_is_named_on_windows_before_pip_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Path("C:/phosphene/.venv"), Path("C:/Users/somebody/Documents/shows of the year/" + "x" * 40)
    assert long_path_warning(long, "linux") == long_path_warning(short, "win32") == ""
    assert "move to C:\\phosphene" in long_path_warning(long, "win32")
    monkeypatch.setattr(environment, "_long_paths_enabled", lambda: True)
    assert long_path_warning(long, "win32") == ""
