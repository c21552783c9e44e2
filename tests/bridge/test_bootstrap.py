"""The one command from a checkout to a running show: what it hands on to ends in its own time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: Runs the other program to its end, as the command does, and says how it ended. What a shell runs in the background ignores Ctrl-C.
STARTER = """
import signal, sys
from bridge.bootstrap import to_its_end
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ended with", to_its_end([sys.executable, "-c", sys.argv[1]]))
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


@pytest.mark.skipif(os.name == "nt", reason="a signal to a group")
def test_what_ctrl_c_ends_is_waited_for() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, SHOW], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline() == "running\n"
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.communicate(timeout=20)[0].splitlines() == ["finished", "ended with 7"]
    finally:
        starter.kill()
