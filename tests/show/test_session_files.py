"""Session and log files of the real command: no other file is renamed, replaced or appended to, and nothing waits."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.performance.session import recover
from tests.show.stage import RUN, Command
from tests.waiting import until

OPTIONS = shlex.split("--sink null: --size 64x64 --steps 1 --device cpu --no-standby --source pattern:ball")
SESSION = "0" * 64 + "\n" + '{"version": 1, "clean": true}'
pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


def plant(folder: Path) -> None:
    """Create one of everything that could be named by mistake."""
    (folder / "folder").mkdir()
    (folder / "folder" / "clip.mp4").write_bytes(b"a clip")
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (folder / "look.toml").write_text('prompt = "ink"\n')
    (folder / "data.json").write_text('{"mine": true}\n')
    (folder / "short").write_text("1")
    (folder / "session.json").write_text(SESSION)
    (folder / "show.json").write_text(SESSION)
    (folder / "show.old").write_text("mine")
    (folder / "link.json").symlink_to("session.json")
    (folder / "null").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    (folder / "a.jsonl").write_text('{"time": "2026-01-01", "event": "starts"}\n')
    (folder / "a.jsonl.1").write_text("mine")


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *(("--session", name) for name in ("folder", "folder/", ".", "clip.mp4", "look.toml", "data.json", "short")),
        *(("--session", name) for name in ("link.json", "null", "/dev/null", "pipe", "clip.mp4/x.json", "show.json")),
        ("--session", "~nobody-of-this-name/x.json"),
        ("--session", "x" * 300),
        ("--journal", "folder"),
        *(("--log", name) for name in ("folder", "clip.mp4", "look.toml", "data.json", "short", "null", "pipe")),
        *(("--log", name) for name in ("session.json", "a.jsonl", "clip.mp4/x", "~nobody-of-this-name/x", "x" * 300)),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, option: str, name: str) -> None:
    plant(tmp_path)
    before = read_tree(tmp_path)
    other = ["--session", "none"] if option == "--log" else ["--log", "none"]
    environment = dict(os.environ) | {"PYTHONPATH": os.getcwd()}
    command = [*RUN, *other, option, name, *OPTIONS, "--seconds", "30"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("phosphene: ")
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"\0" * 300, SESSION.encode(), ("f" * 64 + "\n{damaged").encode()])
def test_what_a_crash_leaves_is_a_session_file(tmp_path: Path, content: bytes) -> None:
    session = tmp_path / "session.json"
    session.write_bytes(content)
    with Command(*OPTIONS, "--session", str(session)) as command:
        command.wait_for("first transformed frame", 60)
        until(lambda: recover(session) is not None, 10, "a saved session")


def test_two_shows_never_save_to_one_file_and_a_restart_after_a_kill_may(tmp_path: Path) -> None:
    session = tmp_path / "session.json"
    arguments = (*OPTIONS, "--session", str(session))
    with Command(*arguments) as first:
        first.wait_for("first transformed frame", 60)
        second = subprocess.run([*RUN, "--log", "none", *arguments], capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert "another show saves its session there" in second.stderr.splitlines()[-1]
        first.process.kill()  # and start at once
        with Command(*arguments) as third:
            third.wait_for("first transformed frame", 60)
            assert "resumed" in third.output


@pytest.mark.skipif(sys.platform != "linux", reason="a folder of Linux in which not even root can create a file")
def test_a_session_that_cannot_be_saved_is_logged_and_the_show_runs() -> None:
    with Command(*OPTIONS, "--session", "/proc/phosphene.json") as command:
        command.wait_for("first transformed frame", 60)
        command.wait_for("the session cannot be saved", 20)
        assert command.process.poll() is None


def test_the_session_leaves_hidden_files_of_others_alone(tmp_path: Path) -> None:
    session = tmp_path / "notes.json"
    mine, temporary = tmp_path / ".notes.backup.json", tmp_path / ".notes.4711-0a1b2c3d.json"
    for path in (mine, temporary):
        path.write_text("{}")
    with Command(*OPTIONS, "--session", str(session)) as command:
        command.wait_for("first transformed frame", 60)
    assert mine.exists()
    assert not temporary.exists(), "what a killed show left"


def test_a_log_is_continued(tmp_path: Path) -> None:
    log = tmp_path / "show.jsonl"
    for _ in range(2):
        result = subprocess.run([*RUN, "--log", str(log), "--session", "none", *OPTIONS, "--seconds", "1"], timeout=60)
        assert result.returncode == 0
    events = [json.loads(line)["event"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert events.count("phosphene ends") == 2
