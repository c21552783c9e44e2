"""Captures: in a private folder, exclusive, on a thread of their own, and deleted when nothing needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from bridge.control.state import State
from bridge.show.captures import MAX_AGE_SECONDS, MAX_CAPTURES, Captures, captures_folder
from engine.shared.frame import Frame
from tests.waiting import until

posix = pytest.mark.skipif(os.name == "nt", reason="permissions and links of POSIX")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the folders are set as on Linux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    return captures_folder()


def make_frame(level: int = 90, side: int = 64) -> Frame:
    return Frame(np.full((side, side, 4), level, np.uint8), 1)


def capture(captures: Captures, state: State, level: int = 90) -> Path:
    """Capture a frame and return its file."""
    before = state.snapshot().text("/reference")
    captures.request(make_frame(level))
    until(lambda: state.snapshot().text("/reference") != before, 5, "the reference")
    until(lambda: captures._thread is None, 5, "the end of the thread")
    return Path(state.snapshot().text("/reference"))


def test_a_capture_is_the_reference_and_no_one_else_can_read_it(folder: Path) -> None:
    folder.mkdir(mode=0o777, parents=True)
    folder.chmod(0o777)
    state = State()
    path = capture(Captures(state), state, 90)
    assert path.parent == folder
    assert cv2.imread(str(path)).mean() == 90
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("trap", ["link", "file", "other user"])
def test_a_folder_of_another_user_is_rejected(folder: Path, tmp_path: Path, trap: str) -> None:
    if trap == "other user" and os.geteuid() != 0:
        pytest.xfail("only root can give a folder away")
    folder.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    if trap == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        os.chown(folder, 12345, -1)
    state = State()
    Captures(state).request(make_frame())
    until(lambda: state.rejected == 1, 5, "the rejection")
    assert state.last_rejection.startswith("/reference/capture: the picture cannot be saved")
    assert "\n" not in state.last_rejection
    assert state.snapshot().text("/reference") == ""
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_request_returns_at_once_and_a_flood_saves_the_newest(folder: Path) -> None:
    state = State()
    captures = Captures(state)
    frames = [Frame(np.random.default_rng(i).integers(0, 256, (1024, 1024, 4), np.uint8), i) for i in range(3)]
    threads = threading.active_count()
    start = time.perf_counter()
    for i in range(300):
        captures.request(frames[i % 3])
    assert time.perf_counter() - start < 1.0, "300 PNGs of this size take many seconds"
    assert threading.active_count() <= threads + 1
    until(lambda: captures._thread is None, 20, "the end of the thread")
    saved = cv2.imread(state.snapshot().text("/reference"))
    assert np.array_equal(saved, frames[299 % 3].pixels[..., 2::-1])
    assert len(list(folder.iterdir())) < 30


def test_a_reference_that_was_set_meanwhile_stays() -> None:
    state = State()
    captures = Captures(state)
    captures.request(Frame(np.random.default_rng(1).integers(0, 256, (2048, 2048, 4), np.uint8), 1))
    state.put({"/reference": "/mine.png"})
    until(lambda: captures._thread is None, 20, "the end of the thread")
    assert state.snapshot().text("/reference") == "/mine.png"


def test_old_captures_are_deleted_and_those_in_use_stay(folder: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder.mkdir(mode=0o700, parents=True)
    day_ago = time.time() - MAX_AGE_SECONDS - 60

    def plant(pid: int, number: int, written_at: float | None = None) -> Path:
        path = folder / f"reference-{pid}-{number:08x}.png"
        path.write_bytes(b"png")
        if written_at is not None:
            os.utime(path, (written_at, written_at))
        return path

    dead = [plant(ended.pid, number) for number in range(4)]
    old = plant(os.getpid(), 1, day_ago)
    other_show = plant(os.getppid(), 1, day_ago)
    mine = folder / "holiday.png"
    mine.write_bytes(b"mine")
    session = tmp_path / "state" / "phosphene" / "journal-9000.json"
    session.parent.mkdir(parents=True)
    session.write_text(f'{{"values": {{"/reference": "{dead[1]}"}}}}')
    preset = tmp_path / "look.toml"
    preset.write_text(f'reference = "{dead[2]}"')
    state = State({"/reference": str(dead[3])})
    captures = Captures(state, lambda: [preset, tmp_path / "nothing.toml"])
    captures.request(make_frame())
    until(lambda: captures._thread is None, 5, "the end of the thread")
    present = Path(state.snapshot().text("/reference"))
    assert set(folder.iterdir()) == {present, *dead[1:], other_show, mine}, "the one before may still be restored"
    later = capture(captures, state)
    assert set(folder.iterdir()) == {present, later, dead[1], dead[2], other_show, mine}
    assert not old.exists()


def test_their_number_is_bounded(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for number in range(MAX_CAPTURES + 20):
        (folder / f"reference-{os.getpid()}-{number:08x}.png").write_bytes(b"png")
    state = State()
    capture(Captures(state), state)
    assert len(list(folder.iterdir())) == MAX_CAPTURES
