"""From a checkout to a running show with one command: ``python3 -m bridge.bootstrap run`` or ``… test``.

Creates a virtual environment with a Python that works, installs Phosphene with the extras of the task and with the
PyTorch for the graphics card, and runs the task inside.

Uses the standard library alone, because nothing else is installed yet, and nothing that Python 3.7 cannot parse,
because the system's Python may be of any version.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge import console
from bridge.install import environment
from bridge.install.packages import Installer

ROOT = Path(__file__).resolve().parent.parent
#: Extras of the package that a task needs.
EXTRAS = {"run": "ndi", "test": "test"}
#: Folder of the virtual environment, where no other is named. It is made again when it no longer works.
ENVIRONMENT = ROOT / ".venv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Install Phosphene, run the task and return its exit code."""
    console.configure()
    options = _parser().parse_args(arguments)
    folder = Path(os.path.abspath(options.venv))
    code = environment.prepare(folder, replace=folder == ENVIRONMENT)
    code = code or Installer(ROOT, folder).install(EXTRAS[options.task])
    if code:
        return code
    python = str(environment.python_of(folder))
    if options.task == "run":
        return run_to_end([python, "-m", "bridge", "run", "--open", *options.rest])
    return run_to_end([python, "-m", "pytest", *options.rest])


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
    parser.add_argument(
        "--venv", type=Path, default=ENVIRONMENT, metavar="DIR", help="virtual environment (default: .venv)"
    )
    parser.add_argument("task", choices=tuple(EXTRAS), help="run: a show with its panel open; test: the tests")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments for `phosphene run`, or for pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
