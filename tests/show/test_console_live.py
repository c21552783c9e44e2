"""Consoles that show no arrow, are closed, full, or not read: the command runs, and ends, all the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from bridge.cli import find_commands
from tests.show.stage import RUN, Command
from tests.waiting import thorough, until

SMALL = ("--size", "64x64", "--steps", "1", "--source", "pattern:ball", "--sink", "null:", "--session", "none")
ENCODINGS = ("ascii:strict", "cp1252:strict", "cp437:strict")


def environment(encoding: str) -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "COLUMNS": "200"}


@pytest.mark.parametrize("encoding", [ENCODINGS[0], *(pytest.param(name, marks=thorough) for name in ENCODINGS[1:])])
def test_listings_and_helps_are_spelled_out(encoding: str, tmp_path: Path) -> None:
    calls = [[name, "--help"] for name in find_commands()]
    calls += [["presets"], ["sources"], ["report", str(tmp_path / f"{encoding}.zip".replace(":", "-"))]]
    if encoding == ENCODINGS[0]:
        calls.append(["doctor"])
    for arguments in calls:
        result = subprocess.run(
            [sys.executable, "-m", "bridge", *arguments], capture_output=True, env=environment(encoding), timeout=120
        )
        assert result.returncode in (0, 1), (arguments, result.stderr)
        assert b"Traceback" not in result.stderr
        assert b"Error" not in result.stderr


def test_a_rendering_ends_with_an_arrow_in_letters(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    for number in range(2):
        cv2.imwrite(str(clip / f"{number}.png"), np.full((64, 64, 3), 90, np.uint8))
    result = subprocess.run(
        [sys.executable, "-m", "bridge", "render", str(clip), str(tmp_path / "out.mp4"), *SMALL[:4]],
        capture_output=True,
        env=environment("ascii:strict"),
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert b" -> " in result.stdout


def test_a_show_on_a_console_of_ascii() -> None:
    with Command(*SMALL, environment=environment("ascii:strict")) as command:
        command.wait_for("first transformed frame", 60)
        assert "addresses /phosphene/..." in command.output
        assert "the engine is starting ..." in command.output
        assert "Error" not in command.output


posix = pytest.mark.skipif(os.name == "nt", reason="descriptors of POSIX")


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full", "> /dev/full 2> /dev/full"])
def test_a_show_without_a_console_plays_to_its_end(closed: str, tmp_path: Path) -> None:
    if "/dev/full" in closed and not Path("/dev/full").exists():
        pytest.xfail("no device that is always full")
    take = tmp_path / "take.mp4"
    arguments = [*SMALL[:-4], "--sink", f"file:{take}", "--session", "none", "--log", "none", "--seconds", "9"]
    with (tmp_path / "errors").open("wb") as errors:
        show = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *RUN, *arguments], stdout=errors, stderr=errors, timeout=60
        )
    assert show.returncode == 0, (tmp_path / "errors").read_text()
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert take.stat().st_size > 1000, "frames came out"


@posix
def test_a_full_disk_under_a_listing_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.xfail("no device that is always full")
    with open("/dev/full", "wb") as full:
        result = subprocess.run([sys.executable, "-m", "bridge", "presets"], stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [b"phosphene: cannot write: No space left on device"]


@posix
def test_a_show_plays_and_ends_although_nobody_reads_its_output() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:  # fill the pipe, as hours of status lines do
            os.write(writer, b"x" * 512)
    except BlockingIOError:
        os.set_blocking(writer, True)
    http_port = free_port()
    command = [*RUN, "--log", "none", *SMALL, "--http-port", str(http_port)]
    show = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    try:
        until(lambda: frames(http_port) > 5, 60, "transformed frames")
        show.send_signal(signal.SIGCONT)  # no effect, but an interrupted write is tried again
        assert urllib.request.urlopen(f"http://127.0.0.1:{http_port}/health", timeout=5).status == 200
        before = frames(http_port)
        until(lambda: frames(http_port) > before + 5, 20, "more frames")
        show.send_signal(signal.SIGTERM)
        assert show.wait(20) == 0, "it ends in order"
    finally:
        show.kill()
        os.close(reader)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def frames(http_port: int) -> int:
    """Return the frames so far; 0 before the panel answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/status.json", timeout=2) as answer:
            return int(json.load(answer)["frames"])
    except OSError:
        return 0
