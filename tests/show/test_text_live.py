"""Text that is no valid Unicode, on the real command: refused in one line, and nothing else suffers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from tests.show.stage import RUN, Command, send_to_panel
from tests.waiting import until

SURROGATES = [
    r'{"set": "prompt", "value": "\ud83d"}',
    r'{"set": "prompt/2", "value": "tail \udcff"}',
    r'{"set": "cue/list", "value": "\ud83d"}',
    r'{"set": "preset/save", "value": "\ud83d"}',
    r'{"set": "preset", "value": "\ud83d"}',
    r'{"set": "schedule", "value": "\ud83d"}',
    r'{"set": "fit", "value": "\ud83d"}',
    r'{"set": "size", "value": "\ud83d"}',
    r'{"set": "strength", "value": "\ud83d"}',
    r'{"set": "freeze", "value": "\ud83d"}',
    r'{"set": "learn", "value": "\ud83d"}',
    r'{"set": "\ud83d", "value": 1}',
]


def osc(address: str, *values: object) -> bytes:
    builder = OscMessageBuilder(address)
    for value in values:
        builder.add_arg(value)  # type: ignore[arg-type]
    return builder.build().dgram


def wait_for_message(subscriber: socket.socket, address: str, value: object) -> None:
    """Read the subscriber's datagrams until one sets ``address`` to ``value``."""
    subscriber.settimeout(10)
    while True:
        message = OscMessage(subscriber.recv(65536))
        if message.address == address and message.params == [value]:
            return


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_lone_surrogates_change_nothing_and_a_killed_engine_is_back_with_the_other_values(tmp_path: Path) -> None:
    session, presets = tmp_path / "session.json", tmp_path / "presets"
    presets.mkdir()
    odd = os.fsencode(presets) + b"/odd-\xff.toml"  # a file name that is no UTF-8
    Path(os.fsdecode(odd)).write_text("strength = 0.5\n")
    arguments = ["--size", "64x64", "--steps", "1", "--source", "pattern:ball", "--sink", "null:"]
    with (
        Command(*arguments, "--session", str(session), "--presets", str(presets)) as command,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as subscriber,
    ):
        command.wait_for("first transformed frame", 60)
        desk = ("127.0.0.1", command.osc_port())
        subscriber.bind(("127.0.0.1", 0))
        subscriber.sendto(osc("/phosphene/subscribe"), desk)
        send_to_panel(command.page(), [*SURROGATES, r'{"set": "prompt/3", "value": "é 😀  end"}'])
        until(lambda: command.status()["refused"] >= len(SURROGATES), 10, "the refusals")
        wait_for_message(subscriber, "/phosphene/prompt/3", "é 😀  end")
        status = command.status()
        assert status["refused"] == len(SURROGATES)
        json.dumps(status, ensure_ascii=False).encode()  # valid Unicode throughout
        assert status["parameters"]["/prompt"] == "neon tunnel, magenta and cyan"

        subscriber.sendto(osc("/phosphene/preset/save", "after"), desk)
        until(lambda: (presets / "after.toml").exists(), 10, "the preset")
        assert "😀" in (presets / "after.toml").read_text(encoding="utf-8")
        until(lambda: session.exists() and "😀" in session.read_text(encoding="utf-8"), 10, "the session file")

        os.kill(status["engine_pid"], signal.SIGKILL)
        until(lambda: command.status()["engine_starts"] == 2 and command.status()["engine_ready"], 40, "the engine")
        frames = command.status()["frames"]
        until(lambda: command.status()["frames"] > frames, 20, "transformed frames")
        assert command.status()["engine_starts"] == 2
        assert command.status()["parameters"]["/prompt/3"] == "é 😀  end"
        subscriber.sendto(osc("/phosphene/strength", 0.75), desk)
        wait_for_message(subscriber, "/phosphene/strength", 0.75)
        assert "Traceback" not in command.output


MISTAKES = {
    "prompt": (["--prompt", "\udcff"], "/prompt takes valid Unicode"),
    "name of --set": (["--set", "\udcff=1"], "unknown parameter"),
    "value of --set": (["--set", "negative=\udcff"], "/negative takes valid Unicode"),
    "preset": (["--preset", "\udcff"], "preset"),
    "desk": (["--desk", "\udcff"], "desk map"),
    "source": (["--source", "file:\udcff"], "no such file"),
    "size": (["--size", "\udcff"], "/size takes"),
}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="arguments are Unicode there")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_argument_that_is_no_unicode_is_one_line_and_exit_code_2(mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    result = subprocess.run(
        [*RUN, "--log", "none", "--session", "none", *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert expected in line
