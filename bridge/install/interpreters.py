"""Which Python Phosphene is installed with: the running one where that works, else another of this machine.

Also runs as a script, in the Python that is asked: it prints ``read_facts`` as JSON. Uses the standard library alone,
and nothing that Python 3.7 cannot parse.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

#: Versions that PyTorch and the other packages have wheels for; pyproject.toml's ``requires-python`` says the same.
OLDEST, TOO_NEW = (3, 11), (3, 15)
#: First version without a wheel of SpoutGL.
FIRST_WITHOUT_SPOUT = (3, 14)
#: Versions to look for, the best first.
PREFERRED = ((3, 13), (3, 12), (3, 11), (3, 14))
DOWNLOADS = {"win32": "https://www.python.org/downloads/windows/", "darwin": "https://www.python.org/downloads/macos/"}
PROBE_SECONDS = 30


@dataclass(frozen=True)
class Interpreter:
    """A Python: its program, version, system and machine as ``sys.platform`` and the build name them."""

    path: str
    version: tuple[int, ...]
    system: str
    machine: str
    implementation: str = "cpython"
    bits: int = 64
    free_threaded: bool = False
    venv: bool = True

    def __str__(self) -> str:
        return f"Python {'.'.join(map(str, self.version))}"


def read_facts() -> Interpreter:
    """Return the running Python."""
    machine = platform.machine()
    if sys.platform == "win32":  # the build's: an x86-64 Python also runs on ARM
        machine = {"win-amd64": "AMD64", "win-arm64": "ARM64"}.get(sysconfig.get_platform(), "x86")
    return Interpreter(
        path=sys.executable,
        version=tuple(sys.version_info[:3]),
        system=sys.platform,
        machine=machine,
        implementation=sys.implementation.name,
        bits=64 if sys.maxsize > 2**32 else 32,
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        venv=importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None,
    )


def ask(command: Sequence[str]) -> Interpreter | None:
    """Return the Python that a command starts; None where it starts none."""
    environment = dict(os.environ, PYTHON_MANAGER_AUTOMATIC_INSTALL="false")  # Windows: look, install nothing
    try:
        answer = subprocess.run(
            [*command, "-I", __file__],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            env=environment,
        )
        facts = json.loads(answer.stdout.decode("utf-8", "replace"))
        return Interpreter(**dict(facts, version=tuple(facts["version"])))
    except (OSError, ValueError, TypeError, KeyError, subprocess.SubprocessError):
        return None


def version_problem(version: Sequence[int]) -> str:
    """Return why Phosphene cannot be installed with a version of Python; "" where it can."""
    if tuple(version[:2]) < OLDEST:
        return "Phosphene needs 3.11 or newer"
    if tuple(version[:2]) >= TOO_NEW:
        return "PyTorch has no build for it that Phosphene works with"
    return ""


def problem(python: Interpreter) -> str:
    """Return why Phosphene cannot be installed with a Python; "" where it can."""
    if python.implementation != "cpython":
        return f"it is {python.implementation}, PyTorch needs CPython"
    if version_problem(python.version):
        return version_problem(python.version)
    if python.free_threaded:
        return "it is the free-threaded build, which most packages have no wheel for"
    if python.bits != 64:
        return "it is the 32-bit build, which PyTorch does not support"
    if python.system == "win32" and python.machine != "AMD64":
        return "it is the build for ARM, which PyTorch has no build for; the one for x86-64 runs on ARM too"
    if python.system == "darwin" and python.machine != "arm64":
        return "it is the build for Intel, which PyTorch has no build for any more; Apple silicon is needed"
    if python.system.startswith("linux") and python.machine not in ("x86_64", "aarch64"):
        return f"PyTorch has no build for {python.machine}"
    if not python.venv:
        return "its venv module is incomplete; on Debian or Ubuntu: apt install python3-venv"
    return ""


def spout_problem(python: Interpreter) -> str:
    """Return why a Python cannot have Spout; "" where it can, and on systems that have no Spout."""
    if python.system == "win32" and tuple(python.version[:2]) >= FIRST_WITHOUT_SPOUT:
        return "Spout has no package for it"
    return ""


def candidates(running: Interpreter) -> Iterator[list[str]]:
    """Yield the commands that may start a suitable Python on the system of ``running``, the best version first."""
    launcher = shutil.which("py") if running.system == "win32" else None
    for major, minor in PREFERRED:
        name = f"{major}.{minor}"
        if launcher:
            yield [launcher, f"-{name}-64" if running.machine == "ARM64" else f"-{name}"]
        program = shutil.which(f"python{name}")
        if program:
            yield [program]


def choose(running: Interpreter) -> tuple[Interpreter | None, str]:
    """Return the Python to install with, and the line that says why; None where there is none.

    The line is empty where the running Python has everything. One without Spout is the last choice.
    """
    reason = problem(running) or spout_problem(running)
    if not reason:
        return running, ""
    if problem(running) and running.system == "darwin" and running.machine == "x86_64" and not _is_apple_silicon():
        return None, "Macs with an Intel processor are not supported: PyTorch has had no build for them since 2.2"
    for command in candidates(running):
        other = ask(command)
        if other is None or problem(other) or (spout_problem(other) and not problem(running)):
            continue
        rest = f"; {spout_problem(other)}" if spout_problem(other) else ""
        return other, f"{running} does not suit ({reason}): using {other}, {other.path}{rest}"
    page = DOWNLOADS.get(running.system, "your system's packages or https://www.python.org/downloads/")
    remedy = f"install Python 3.13, 64-bit, from {page}"
    if not problem(running):
        return running, f"{running} works, but {reason}; for Spout, {remedy}"
    if running.bits == 64 and not running.free_threaded and not version_problem(running.version) and not running.venv:
        return None, f"{running} does not suit: {reason}"
    return None, f"{running} does not suit ({reason}), and no other was found: {remedy}, then run this again"


def _is_apple_silicon() -> bool:
    """Return whether a Mac has Apple silicon, also for a Python that runs under Rosetta."""
    try:
        answer = subprocess.run(
            ["sysctl", "-n", "hw.optional.arm64"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return answer.stdout.strip() == b"1"


if __name__ == "__main__":
    print(json.dumps(asdict(read_facts())))
