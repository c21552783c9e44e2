"""``phosphene run`` as a user of Windows or macOS starts it, on stand-ins for Spout, Syphon and the run loop.

Without options: the pattern at once, then the picture of a program that starts later, upright through the whole show.
The stand-in is in the process of the show, which thinks that it is on the other system. On the pretended Windows the
engine cannot start, because processes are started in another way there: the show passes its input on.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SHOW = """
import asyncio, multiprocessing.popen_spawn_posix, os, selectors, signal, sys, threading, time, webbrowser
import aiohttp, psutil, pytest, zeroconf
import bridge.cli, bridge.commands.run
import numpy as np
from tests.bridge.textures.fake_spout import FakeSpout
from tests.bridge.textures.fake_syphon import FakeSyphon
from tests.bridge.textures.pictures import upright
from tests.waiting import until

system = sys.argv[1]
machine = FakeSyphon() if system == "darwin" else FakeSpout()
machine.install(pytest.MonkeyPatch())

def picture():
    surface = machine.published.get("phosphene-out") if system == "darwin" else None
    picture = surface.picture if surface and surface.number else None
    return picture if system == "darwin" else machine.pictures.get("phosphene-out")

def play():
    try:
        until(lambda: picture() is not None and picture().std() > 20, 20, "the pattern")
        print("PATTERN", flush=True)
        if system == "darwin":
            server = machine.start_server("TouchDesigner", "phosphene-in")
            machine.request_servers()
        def send_and_compare():
            if system == "darwin":
                server.picture = upright(64, 64)
            else:
                machine.send("phosphene-in", upright(64, 64))
            return np.array_equal(picture(), upright(64, 64))
        until(send_and_compare, 20, "the picture of the other program")
        print("UPRIGHT", flush=True)
        if system == "darwin":
            until(lambda: machine.elsewhere == {"phosphene-out"}, 20, "our server in the list of another program")
            print("LISTED", flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=play).start()
options = "--osc-port 0 --http-port 0 --log none --session none --no-standby --size 64x64".split()
code = bridge.cli.main(["run", *options])
print("ENDED", code, getattr(machine, "contexts_open", 0), getattr(machine, "wrong_thread", []), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pretends to be on another system, from Linux")
@pytest.mark.parametrize(("system", "sender"), [("darwin", "syphon:phosphene-in"), ("win32", "spout:phosphene-in")])
def test_the_first_command_shows_the_pattern_and_then_what_another_program_sends(system: str, sender: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHOW, system], capture_output=True, text=True, timeout=120, check=False
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert f"source   pattern:plasma until {sender} appears" in output
    assert output.count(f"{sender} is there and replaces pattern:plasma") == 1
    for step in ("PATTERN", "UPRIGHT", "ENDED 0 0 []", *(["LISTED"] if system == "darwin" else [])):
        assert step in output
    assert "Traceback" not in output
