"""The command with little shared memory, in a mount namespace: smaller frames, or one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.shared.frame import MAX_SIDE
from engine.shared.memory import PREFIX
from tests.show.stage import RUN, Command, send_to_panel
from tests.waiting import until

SMALL = ("--steps", "1", "--source", "pattern:ball", "--sink", "null:", "--session", "none", "--log", "none")


def can_mount() -> bool:
    """Return whether a mount namespace with a small /dev/shm can be made here."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return False
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    return subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode == 0


@pytest.mark.parametrize(("size", "working_size"), [("1m", "256x256"), ("1m", "64x64"), ("16m", "1024x1024")])
def test_too_little_shared_memory_is_one_line_and_exit_code_2(size: str, working_size: str) -> None:
    if not can_mount():
        pytest.xfail("needs Linux and root")
    result = subprocess.run(
        within(size, [*RUN, *SMALL, "--size", working_size]), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert f"/dev/shm has {size[:-1]} MiB" in line
    assert "--shm-size" in line


def within(size: str, command: list[str]) -> list[str]:
    """Return the command that runs ``command`` with ``size`` of shared memory."""
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh", *command]


@pytest.mark.parametrize(("size", "working_size"), [("64m", "256x256"), ("16m", "256x256"), ("4m", "64x64")])
def test_a_show_runs_with_little_shared_memory(size: str, working_size: str) -> None:
    if not can_mount():
        pytest.xfail("needs Linux and root")
    port = 0
    process = subprocess.Popen(
        within(size, [*RUN, *SMALL, "--size", working_size]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"http://127.0.0.1:(\d+)/", line):
                port = int(match[1])
            if "first transformed frame" in line:
                break
        assert "first transformed frame" in lines[-1], "".join(lines)
        (notice,) = (line for line in lines if "/dev/shm" in line)
        side = int(re.search(r"frames up to (\d+)x", notice)[1])  # type: ignore[index]
        assert side < MAX_SIDE
        before = status(port)
        until(lambda: status(port)["frames"] > before["frames"] + 20, 60, "more frames")
        # A size that does not fit is refused in one line, and the show keeps its own.
        send_to_panel(f"http://127.0.0.1:{port}/", ['{"set": "size", "value": "2048x2048"}'])
        until(lambda: status(port)["errors"] > before["errors"], 20, "the refusal")
        until(lambda: status(port)["parameters"]["/size"] == working_size, 5, "the size from before")
        after = status(port)
        assert "room for frames up to" in after["last_error"]
        assert after["engine_starts"] == 1
        until(lambda: status(port)["frames"] > after["frames"] + 5, 30, "more frames")
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def status(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=5) as answer:
        return dict(json.load(answer))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_the_memory_of_a_show_that_was_killed_with_its_tracker_is_freed_by_the_next_start() -> None:
    def blocks() -> set[Path]:
        return set(Path("/dev/shm").glob(f"{PREFIX}*"))

    before = blocks()
    with Command(*SMALL[:-2], "--size", "64x64", "--no-standby") as command:
        command.wait_for("first transformed frame", 60)
        abandoned = blocks() - before
        assert len(abandoned) == 3
        bridge = psutil.Process(command.process.pid)
        for process in [*bridge.children(recursive=True), bridge]:
            os.kill(process.pid, signal.SIGKILL)
        command.process.wait(10)
        assert abandoned <= blocks(), "nobody has freed it"
    with Command(*SMALL[:-2], "--size", "64x64", "--no-standby") as command:
        command.page()
        assert not abandoned & blocks()
        assert len(blocks() - before) == 3, "the blocks of the running show stay"
        with Command(*SMALL[:-2], "--size", "64x64", "--no-standby") as other:
            other.page()
            assert len(blocks() - before) == 6
