"""Recordings get a new name each time; with ``overwrite`` a finished one replaces the earlier one and nothing else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from bridge.textures import Sink, TextureError, open_sink
from engine.shared.files import claim_new
from engine.shared.frame import Frame

posix = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


def record(sink: Sink, level: int = 90, size: int = 64) -> None:
    sink.write(Frame(np.full((size, size, 4), level, np.uint8)))


def is_video(path: Path) -> bool:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0)) > 0


def test_each_recording_has_a_new_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "take.mp4").write_bytes(b"an earlier one")
    for name in ("take-2.mp4", "take-3.mp4"):
        with open_sink(f"file:{tmp_path}/take.mp4") as sink:
            record(sink)
            assert sink.url == f"file:{tmp_path}/{name}"
        assert is_video(tmp_path / name)
        assert f"recording to {tmp_path / name}" in caplog.text
    assert (tmp_path / "take.mp4").read_bytes() == b"an earlier one"


@posix
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["dangling link", "link", "folder", "pipe", "device"])
def test_what_is_no_file_is_left_alone(tmp_path: Path, kind: str, overwrite: bool) -> None:
    take = tmp_path / "take.mp4"
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    {
        "dangling link": lambda: take.symlink_to("nothing.mp4"),
        "link": lambda: take.symlink_to("mine.mp4"),
        "folder": lambda: take.mkdir(),
        "pipe": lambda: os.mkfifo(take),
        "device": lambda: take.symlink_to("/dev/null"),
    }[kind]()
    before = os.lstat(take)
    sink = open_sink(f"file:{take}")
    sink.reserve(overwrite)
    record(sink)
    sink.close()
    assert is_video(tmp_path / "take-2.mp4")
    assert (tmp_path / "mine.mp4").read_bytes() == b"mine"
    assert (os.lstat(take).st_ino, os.lstat(take).st_mode) == (before.st_ino, before.st_mode)
    assert not (tmp_path / "nothing.mp4").exists()


def test_two_sinks_of_one_name_are_two_files(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/take.mp4"
    with open_sink(url) as one, open_sink(url) as two:
        record(one)
        record(two)
    assert is_video(tmp_path / "take.mp4")
    assert is_video(tmp_path / "take-2.mp4")


def test_a_name_is_claimed_by_one_alone(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(claim_new(tmp_path / "take.mp4"))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 40


def test_a_finished_recording_replaces_the_earlier_one_if_asked(tmp_path: Path) -> None:
    take = tmp_path / "take.mp4"
    take.write_bytes(b"an earlier one")
    sink = open_sink(f"file:{take}")
    sink.reserve(overwrite=True)
    assert sink.describe() == f"file:{tmp_path}/take-2.mp4 (replaces {take} when it is finished)"
    record(sink)
    assert take.read_bytes() == b"an earlier one", "until the new one is finished"
    sink.close()
    assert is_video(take)
    assert [path.name for path in tmp_path.iterdir()] == ["take.mp4"]


@pytest.mark.parametrize("existed", [False, True])
def test_of_two_that_overwrite_one_name_both_stay(tmp_path: Path, existed: bool) -> None:
    take = tmp_path / "take.mp4"
    if existed:
        take.write_bytes(b"an earlier one")
    sinks = [open_sink(f"file:{take}") for _ in range(2)]
    for level, sink in enumerate(sinks):
        sink.reserve(overwrite=True)
        record(sink, 60 + 90 * level)
    for sink in sinks:
        sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["take-3.mp4", "take.mp4"]
    assert is_video(take)
    assert is_video(tmp_path / "take-3.mp4")


def test_overwrite_spares_a_source_and_a_show_that_did_not_end_in_order(tmp_path: Path) -> None:
    take = tmp_path / "take.mp4"
    take.write_bytes(b"the source")
    for inputs, expected in (([tmp_path / "." / "take.mp4"], "take-2.mp4"), ([], "take-3.mp4")):
        sink = open_sink(f"file:{take}")
        sink.reserve(overwrite=True, inputs=inputs)
        record(sink)
        sink.keep_earlier()
        sink.close()
        assert is_video(tmp_path / expected)
    assert take.read_bytes() == b"the source"


RECORD_FOR_EVER = """
import sys, time
import numpy as np
from bridge.textures import open_sink
from engine.shared.frame import Frame
sink, start, generator = open_sink(sys.argv[1]), time.perf_counter(), np.random.default_rng(1)
while True:
    sink.write(Frame(generator.integers(0, 255, (64, 64, 4), np.uint8)))
    print(time.perf_counter() - start, flush=True)
    time.sleep(1 / 60)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_of_a_recording_whose_process_is_killed_only_the_end_is_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"take{suffix}"
    command = [sys.executable, "-c", RECORD_FOR_EVER, f"file:{path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        recorded = next(seconds for line in process.stdout if (seconds := float(line)) > 4.5)
        process.kill()
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times[-1] is not None
    assert times[-1] > recorded - 3.5


def test_a_recording_without_a_frame_leaves_no_file(tmp_path: Path) -> None:
    take = tmp_path / "take.mp4"
    for overwrite in (False, True):
        sink = open_sink(f"file:{take}")
        sink.reserve(overwrite)
        sink.close()
        assert list(tmp_path.iterdir()) == []
    sink = open_sink(f"file:{take}")
    for _ in range(3):
        with pytest.raises((TextureError, IndexError)):
            record(sink, size=1)  # no encoder takes it
    sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "~nobody-of-this-name/take.mp4"])
def test_a_name_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(TextureError) as error:
        open_sink(f"file:{name if name[0] == '~' else tmp_path / name}").reserve()
    assert "\n" not in str(error.value)
