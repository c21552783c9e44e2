"""From a checkout to a running show with one command: ``python3 -m bridge.bootstrap run`` or ``… test``.

Creates a virtual environment, installs Phosphene with the extras of the task, and runs the task inside.
Uses the standard library alone, because nothing else is installed yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge import console

ROOT = Path(__file__).resolve().parent.parent
#: Extras of the package that a task needs.
EXTRAS = {"run": "ndi", "test": "test"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Install Phosphene, run the task and return its exit code."""
    console.configure()
    options = _parser().parse_args(arguments)
    if sys.version_info < (3, 11):  # noqa: UP036 -- the system's Python may be of any version
        print(f"phosphene: needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    python = options.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        if importlib.util.find_spec("ensurepip") is None:
            print(
                "phosphene: Python's venv module is incomplete; on Debian or Ubuntu: apt install python3-venv",
                file=sys.stderr,
            )
            return 2
        print(f"creating {options.venv} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=True)
    if code := install(python, EXTRAS[options.task]):
        return code
    if options.task == "run":
        return run_to_end([str(python), "-m", "bridge", "run", "--open", *options.rest])
    return run_to_end([str(python), "-m", "pytest", *options.rest])


def install(python: Path, extra: str) -> int:
    """Install ``phosphene[extra]`` at the locked versions, or at others where those do not suit; return pip's code."""
    print(f"installing phosphene[{extra}] …", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{ROOT}[{extra}]"]
    code = subprocess.run([*pip, "--constraint", str(ROOT / "requirements.lock")]).returncode
    if code:
        print("phosphene: requirements.lock does not suit this Python; installing other versions", file=sys.stderr)
        code = subprocess.run(pip).returncode
    return code


def run_to_end(command: Sequence[str]) -> int:
    """Run ``command`` in the checkout and return its exit code.

    Ctrl-C reaches the command by itself. Waits for it to end, because a show finishes its recordings first.
    """
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m bridge.bootstrap", description="Set Phosphene up, then run it or its tests."
    )
    venv = ROOT / ".venv"
    parser.add_argument("--venv", type=Path, default=venv, metavar="DIR", help="virtual environment (default: .venv)")
    parser.add_argument("task", choices=tuple(EXTRAS), help="run: a show with its panel open; test: the tests")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments for `phosphene run`, or for pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
