"""The choice of a Python, with stand-ins for the launcher and for the Pythons of a system."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from bridge.install.interpreters import Interpreter, ask, choose, problem, read_facts, version_problem
from tests.house.sources import ROOT, modules, parse
from tests.programs import needs_shell, write_program

WINDOWS = Interpreter(r"C:\Python313\python.exe", (3, 13, 5), "win32", "AMD64")
LINUX = Interpreter("/usr/bin/python3", (3, 13, 5), "linux", "x86_64")
MAC = Interpreter("/usr/local/bin/python3", (3, 13, 5), "darwin", "arm64")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install_python(path: Path, python: Interpreter, name: str = "") -> Interpreter:
    """Put a stand-in for a Python on the PATH; it answers the question for its facts."""
    script = f"echo '{json.dumps(asdict(python))}'".replace("\\", "\\\\")
    write_program(path / (name or "python{}.{}".format(*python.version)), script)
    return python


def install_launcher(path: Path, pythons: dict[str, Interpreter]) -> None:
    """Put a stand-in for Windows' ``py`` on the PATH, with the Pythons that it starts by option."""
    lines = [f"{option}) printf '%s' '{json.dumps(asdict(python))}';;" for option, python in pythons.items()]
    write_program(
        path / "py", 'case "$1" in\n' + "\n".join(lines) + "\n*) echo 'No suitable Python' >&2; exit 103;;\nesac"
    )


@pytest.mark.parametrize(
    "python", [WINDOWS, LINUX, MAC, replace(LINUX, version=(3, 14, 0)), replace(MAC, version=(3, 11, 0))]
)
def test_a_python_that_works_is_used_without_a_word(python: Interpreter) -> None:
    assert choose(python) == (python, "")


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        (replace(LINUX, version=(3, 10, 12)), "Phosphene needs 3.11 or newer"),
        (replace(LINUX, version=(3, 7, 16)), "Phosphene needs 3.11 or newer"),
        (replace(LINUX, version=(3, 15, 0)), "PyTorch has no build for it"),
        (replace(LINUX, version=(4, 0, 0)), "PyTorch has no build for it"),
        (replace(LINUX, implementation="pypy"), "it is pypy"),
        (replace(LINUX, free_threaded=True), "free-threaded"),
        (replace(WINDOWS, bits=32, machine="x86"), "32-bit"),
        (replace(WINDOWS, machine="ARM64"), "the one for x86-64 runs on ARM too"),
        (replace(MAC, machine="x86_64"), "Apple silicon is needed"),
        (replace(LINUX, machine="riscv64"), "PyTorch has no build for riscv64"),
        (replace(LINUX, venv=False), "apt install python3-venv"),
    ],
)
def test_a_python_that_does_not_work_has_a_reason(python: Interpreter, reason: str) -> None:
    assert reason in problem(python)
    chosen, line = choose(python)
    assert chosen is None
    assert "\n" not in line
    assert line


@needs_shell
@pytest.mark.parametrize("version", [(3, 15, 0), (3, 10, 1), (3, 9, 6)])
def test_windows_takes_the_newest_with_spout_from_the_launcher(path: Path, version: tuple[int, ...]) -> None:
    other = replace(WINDOWS, path="C:/Python312/python.exe", version=(3, 12, 10))
    install_launcher(path, {"-3.12": other, "-3.11": WINDOWS, "-3.14": replace(WINDOWS, version=(3, 14, 2))})
    running = replace(WINDOWS, version=version)
    chosen, line = choose(running)
    assert chosen == other
    assert line.startswith(f"{running} does not suit (")
    assert line.endswith("): using Python 3.12.10, C:/Python312/python.exe")


@needs_shell
def test_windows_takes_314_without_spout_where_nothing_else_is(path: Path) -> None:
    other = replace(WINDOWS, version=(3, 14, 2))
    install_launcher(path, {"-3.14": other})
    chosen, line = choose(replace(WINDOWS, version=(3, 15, 0)))
    assert chosen == other
    assert line.endswith("; Spout has no package for it")


@needs_shell
def test_314_on_windows_prefers_one_with_spout_and_works_without(path: Path) -> None:
    running = replace(WINDOWS, version=(3, 14, 2))
    assert choose(running) == (
        running,
        "Python 3.14.2 works, but Spout has no package for it; for Spout, install Python 3.13, 64-bit, from "
        "https://www.python.org/downloads/windows/",
    )
    install_launcher(path, {"-3.14": running, "-3.11": replace(WINDOWS, version=(3, 11, 9))})
    chosen, line = choose(running)
    assert chosen == replace(WINDOWS, version=(3, 11, 9))
    assert "Spout has no package for it" in line


@needs_shell
def test_arm_windows_asks_for_the_python_for_x86_64(path: Path) -> None:
    install_launcher(path, {"-3.13": replace(WINDOWS, machine="ARM64"), "-3.13-64": WINDOWS})
    assert choose(replace(WINDOWS, machine="ARM64"))[0] == WINDOWS


@needs_shell
def test_other_systems_look_on_the_path_and_skip_what_does_not_answer(path: Path) -> None:
    write_program(path / "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    write_program(path / "python3.12", "echo '[]'")
    other = install_python(path, replace(LINUX, path="/usr/bin/python3.11", version=(3, 11, 2)))
    running = replace(LINUX, version=(3, 15, 1))
    chosen, line = choose(running)
    assert chosen == other
    assert line.endswith("using Python 3.11.2, /usr/bin/python3.11")
    assert "Spout" not in line


@needs_shell
def test_a_name_that_starts_another_version_is_not_believed(path: Path) -> None:
    install_python(path, replace(LINUX, version=(3, 10, 0)), "python3.13")
    install_python(path, replace(LINUX, venv=False), "python3.12")
    chosen, line = choose(replace(LINUX, version=(3, 15, 0)))
    assert chosen is None
    assert line.endswith(
        "no other was found: install Python 3.13, 64-bit, from your system's packages or "
        "https://www.python.org/downloads/, then run this again"
    )


@needs_shell
def test_an_intel_mac_is_named_and_a_python_under_rosetta_is_replaced(path: Path) -> None:
    rosetta = replace(MAC, machine="x86_64")
    install_python(path, MAC)
    assert choose(rosetta) == (
        None,
        "Macs with an Intel processor are not supported: PyTorch has had no build for them since 2.2",
    )
    write_program(path / "sysctl", "echo 1")
    assert choose(rosetta)[0] == MAC


def test_this_python_answers_about_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_facts()
    assert facts.version == tuple(sys.version_info[:3])
    assert ask([sys.executable]) == facts
    assert ask(["no-such-python"]) is None


def test_the_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = SpecifierSet(project["requires-python"])
    for minor in range(8, 18):
        assert allowed.contains(f"3.{minor}.1") == (not version_problem((3, minor, 1))), minor


def test_the_first_command_parses_with_python_37_and_needs_no_package() -> None:
    """Import the command without packages; then parse all that it loaded as Python 3.7 would."""
    code = "import sys, bridge.bootstrap; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    environment = {"PYTHONPATH": str(ROOT), "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")}
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    loaded = {name for name in result.stdout.split() if name.split(".")[0] in ("bridge", "engine")}
    assert {"bridge.bootstrap", "bridge.console", "bridge.install.packages", "engine.shared.torch_build"} <= loaded
    for name in loaded:
        path = modules()[name]
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 7))
        imported = {alias.name for node in parse(path).body if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in parse(path).body if isinstance(node, ast.ImportFrom)}
        assert not imported & {"tomllib", "importlib.metadata"}, f"{name}: not in Python 3.7"
    foreign = {name.split(".")[0] for name in result.stdout.split()} - {"bridge", "engine", "__main__"}
    assert foreign <= set(sys.stdlib_module_names)
