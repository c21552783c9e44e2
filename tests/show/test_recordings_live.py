"""Recordings of the real command: a source and an earlier take survive each other, restarts and kills."""

from __future__ import annotations

import shlex
import signal
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from bridge.textures.file import VideoWriter
from tests.show.stage import RUN, Command
from tests.waiting import until

OPTIONS = shlex.split("--size 64x64 --steps 1 --device cpu --session none --no-standby")


def write_clip(path: Path) -> bytes:
    writer = VideoWriter(path, rate=Fraction(25))
    for i in range(10):
        writer.write(np.full((64, 64, 4), 20 * i, np.uint8))
    writer.close()
    return path.read_bytes()


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("more", ["", "--overwrite"])
def test_the_source_is_never_the_recording(tmp_path: Path, more: str) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    urls = [f"file:{tmp_path}/{name}" for name in ("a.mp4", "a.mp4", "./a.mp4", "link.mp4")]
    sinks = [option for url in urls for option in ("--sink", url)]
    with Command("--source", urls[0], "--control", urls[3], *sinks, *OPTIONS, *more.split()) as command:
        names = ["a-2.mp4", "a-3.mp4", "a-4.mp4", "link-2.mp4"]
        line = command.wait_for(r"sinks +(.*)", 20)[1]
        assert [Path(url).name for url in line.split(", ")] == names
        command.wait_for("first transformed frame", 60)
        until(lambda: all((tmp_path / name).stat().st_size for name in names), 20, "recorded bytes")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(20) == 0
    assert (tmp_path / "a.mp4").read_bytes() == clip
    assert (tmp_path / "link.mp4").is_symlink()
    assert all(count_frames(tmp_path / name) > 3 for name in names)
    assert "recording to" in command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize("more", ["", "--overwrite"])
def test_a_restart_after_a_kill_keeps_the_first_take(tmp_path: Path, more: str) -> None:
    take = tmp_path / "take.mp4"
    arguments = ("--source", "pattern:ball", "--sink", f"file:{take}", *OPTIONS, *more.split())
    first = tmp_path / ("take-2.mp4" if more else "take.mp4")
    with Command(*arguments) as command:
        command.wait_for("first transformed frame", 60)
        until(lambda: first.stat().st_size > 1000, 20, "recorded bytes")
        command.process.kill()
        command.process.wait(10)
    crashed = first.read_bytes()
    assert count_frames(first) > 0
    with Command(*arguments) as command:
        command.wait_for("first transformed frame", 60)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(20) == 0
    assert first.read_bytes() == crashed
    assert count_frames(take if more else tmp_path / "take-2.mp4") > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_start_that_fails_leaves_no_file_and_the_earlier_take(tmp_path: Path) -> None:
    take = tmp_path / "take.mp4"
    take.write_bytes(b"an earlier one")
    arguments = ["--sink", f"file:{take}", "--overwrite", "--model", "/no/such/model", *OPTIONS, "--log", "none"]
    result = subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert take.read_bytes() == b"an earlier one"
    assert all(count_frames(path) for path in tmp_path.iterdir() if path != take)
