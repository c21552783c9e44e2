"""From a checkout to a running show with one command: ``python3 -m bridge.bootstrap run`` or ``… test``.

Makes a virtual environment, installs Phosphene into it with what the command needs, and goes on inside.
Uses the standard library alone, because nothing else is there yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Installs where needed and runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m bridge.bootstrap", description="Set Phosphene up and run it, or its tests."
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the virtual environment goes (.venv)")
    parser.add_argument("task", choices=("run", "test"), help="run: the show with its page open; test: the tests")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="handed on: to `phosphene run`, or to pytest")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 -- whoever starts this may have any Python
        print(f"phosphene: needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    python = options.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        if importlib.util.find_spec("ensurepip") is None:
            print(
                "phosphene: Python's venv module is incomplete here; on Debian or Ubuntu: apt install python3-venv",
                file=sys.stderr,
            )
            return 2
        print(f"making {options.venv} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=True)
    extra = "ndi" if options.task == "run" else "test"
    print(f"installing phosphene[{extra}] …", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{ROOT}[{extra}]"]
    installed = subprocess.run([*install, "--constraint", str(ROOT / "requirements.lock")])
    if installed.returncode:
        print(
            "phosphene: the versions in requirements.lock do not all suit this Python; taking others", file=sys.stderr
        )
        installed = subprocess.run(install)
    if installed.returncode:
        return installed.returncode
    if options.task == "run":
        command = [str(python), "-m", "bridge", "run", "--open", *options.rest]
    else:
        command = [str(python), "-m", "pytest", *options.rest]
    return to_its_end(command)


def to_its_end(command: Sequence[str]) -> int:
    """Runs the command in the checkout; its exit code. Ctrl-C reaches it by itself, and is waited out: recordings are finished then."""
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main())
