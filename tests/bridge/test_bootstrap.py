"""The one command from a checkout to a running show: its two names, and that it waits for the show to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: Runs a program to its end, as the command does, and prints the exit code. Restores Ctrl-C, which a shell's
#: background processes ignore.
STARTER = """
import signal, sys
from bridge.bootstrap import run_to_end
signal.signal(signal.SIGINT, signal.default_int_handler)
print("exit code", run_to_end([sys.executable, "-c", sys.argv[1]]))
"""
#: Takes its time to end after Ctrl-C.
SHOW = """
import time
try:
    print("running", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(1.5)
    print("finished", flush=True)
    raise SystemExit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="a signal to a process group")
def test_the_show_is_waited_for_after_ctrl_c() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, SHOW], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline() == "running\n"
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.communicate(timeout=20)[0].splitlines() == ["finished", "exit code 7"]
    finally:
        starter.kill()


def test_the_old_module_name_prints_the_same_help() -> None:
    def show_help(module: str) -> str:
        command = [sys.executable, "-m", module, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert show_help("bridge.fresh") == show_help("bridge.bootstrap")
    assert "python3 -m bridge.bootstrap" in show_help("bridge.fresh")
