"""Files of the user against the real command: odd ones at the start, and a folder full of them during a show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pythonosc.udp_client import SimpleUDPClient

from tests.bridge.performance.rig import write
from tests.show.stage import RUN, Command
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes and links")]
#: Entries of the presets' folder that are no presets.
OTHER_FILES = 30_000


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--preset", "pipe.toml", "a pipe, not a regular file"),
        ("--preset", "endless.toml", "a device, not a regular file"),
        ("--preset", "dots.toml", "a key of more than 8 parts"),
        ("--desk", "sparse.toml", "is larger than"),
        ("--source", "file:pipe.toml", "a pipe, not a regular file"),
        ("--hooks", "hooks", "hook pipe is not readable: a pipe, not a regular file"),
    ],
)
def test_an_odd_file_at_the_start_is_one_line(tmp_path: Path, option: str, name: str, message: str) -> None:
    (tmp_path / "hooks").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    os.mkfifo(tmp_path / "hooks" / "pipe.py")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    write(tmp_path / "dots.toml", "a." * 20_000 + "a = 1\n")
    with (tmp_path / "sparse.toml").open("wb") as file:
        file.truncate(3 << 30)
    result = subprocess.run(
        [*RUN, "--log", "none", "--session", "none", option, name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert message in line
    assert "Traceback" not in result.stderr


def test_a_folder_of_odd_files_costs_a_show_nothing(tmp_path: Path) -> None:
    for i in range(OTHER_FILES):
        (tmp_path / f"{i}.tmp").touch()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "nowhere.toml").symlink_to("/nowhere/at/all.toml")
    write(tmp_path / "cues" / "night.toml", "[[cue]]\nnumber = 1\nvalues = { mix = 0.25 }\n")
    os.mkfifo(tmp_path / "cues" / "pipe.toml")
    options = ["--source", "pattern:plasma", "--sink", "null:", "--session", "none", "--no-standby"]
    with Command(*options, "--size", "128x128", "--presets", str(tmp_path)) as command:
        desk = SimpleUDPClient("127.0.0.1", command.osc_port())

        def send(name: str, *values: object) -> None:
            desk.send_message(f"/phosphene{name}", list(values))  # type: ignore[arg-type]

        until(lambda: command.status()["show"]["preset_problems"].get("pipe"), 20, "the pipe is named")
        send("/cue/list", "night")
        send("/cue/go")
        send("/strength", 0.75)
        send("/preset/save", "mine")
        send("/strength", 0.5)
        send("/preset", "mine")
        until(lambda: command.status()["parameters"]["/strength"] == 0.75, 10, "the preset that was just saved")
        assert command.status()["show"]["cues"]["current"] == "1"
        until((tmp_path / "mine.toml").is_file, 10, "the file of the preset")
        status = command.status()["show"]
        assert set(status["preset_problems"]) <= {"pipe", "folder"}
        assert {"night", "pipe"} <= set(status["cue_lists"])
        command.process.terminate()
        assert command.process.wait(15) == 0
