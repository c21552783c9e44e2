"""``phosphene doctor``: checks what works on this machine, with the install command for what does not."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from bridge.engine_process.tcmalloc import find_library
from bridge.install.interpreters import version_problem
from bridge.textures import Transport, default_sender, default_sinks, default_source, transports

HELP = "check what works on this machine, with the install command for what does not"
PACKAGES = ("torch", "diffusers", "transformers", "python-osc", "av", "numpy")
#: Longest that loading the built-in model may take.
PROBE_TIMEOUT_SECONDS = 300


class Check(Protocol):
    """Prints the line of one check."""

    def __call__(self, passed: bool, name: str, text: str, required: bool = False) -> None:
        """Print ``name`` and ``text``; a ``required`` check that fails makes the exit code 1."""


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def main(_options: argparse.Namespace | None = None) -> int:
    """Print one line per check; return 0 where `phosphene run` can work, else 1."""
    good = True

    def check(passed: bool, name: str, text: str, required: bool = False) -> None:
        nonlocal good
        print(f"{'ok  ' if passed else 'no  '} {name:<9} {text}")
        good = good and (passed or not required)

    supported = not version_problem(sys.version_info[:2])
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    check(supported, "Python", system + ("" if supported else "; needs 3.11 to 3.14"), required=True)
    for package in PACKAGES:
        try:
            check(True, package, version(package))
        except PackageNotFoundError:
            check(False, package, f"missing: pip install {package}", required=True)
    _check_engine(check)
    if sys.platform.startswith("linux"):
        library = find_library()
        hint = "optional, for speed on a CPU: apt install libtcmalloc-minimal4"
        check(library is not None, "tcmalloc", str(library or hint))
    try:
        check(True, "tensorrt", version("tensorrt"))
    except PackageNotFoundError:
        check(False, "tensorrt", "optional, for NVIDIA: pip install 'phosphene[tensorrt]'")
    for transport in transports():
        passed, text = _check_transport(transport)
        check(passed, transport.scheme + ":", text)
    sender = default_sender()
    source = default_source() + (f", from when it is there {sender}," if sender else "")
    print(f"`phosphene run` would read {source} and send to {', '.join(default_sinks())}")
    return 0 if good else 1


def _check_engine(check: Check) -> None:
    """Load torch and the built-in models in another process: this one has no torch, and survives a broken driver."""
    probe = subprocess.run(
        [sys.executable, "-m", "engine.worker.probe"],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_SECONDS,
    )
    answer = probe.stdout.splitlines()
    if probe.returncode == 0 and len(answer) == 5:
        _, device, model_device, missing, unused = answer
        check(True, "device", device)
        check(unused == "-", "card", "none is unused" if unused == "-" else unused)
        check(True, "model", f"the built-in models load on {model_device}")
        check(missing == "-", "compile", "usable" if missing == "-" else f"optional, for speed: {missing}")
    else:
        reason = (probe.stderr.strip().splitlines() or ["no answer"])[-1]
        check(False, "device", f"torch or a built-in model does not work: {reason}", required=True)


def _check_transport(transport: Transport) -> tuple[bool, str]:
    """Return whether a texture transport is usable here, and the text for its line."""
    reason = transport.unavailable_reason()
    if reason or not transport.devices:
        return not reason, reason or "usable"
    urls = [f"{transport.scheme}:{name}" for name in transport.names()]
    return bool(urls), f"usable: {', '.join(urls)}" if urls else f"no {transport.title.lower()} detected"
