"""The reader of users' files: nobody waits for a folder that hangs, and what comes late is dropped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.file_reader import MAX_ABANDONED_JOBS, MAX_QUEUED_JOBS, FileReader
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.presets import PresetLibrary
from bridge.show.fallback import Fallback
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE
from tests.bridge.performance.rig import write
from tests.waiting import until

LIMIT_SECONDS = 0.1


class Disk:
    """A disk that hangs until ``answer`` is set."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.reads = 0

    def read(self) -> str:
        self.reads += 1
        self.answer.wait(30)
        return "late"


@pytest.fixture
def disk() -> Iterator[Disk]:
    hanging = Disk()
    yield hanging
    hanging.answer.set()


@pytest.fixture
def reader() -> Iterator[FileReader]:
    opened = FileReader(LIMIT_SECONDS)
    opened.open()
    yield opened
    opened.close()


def finish(reader: FileReader) -> None:
    """Wait until every job before this call has been done."""
    done = threading.Event()
    reader.submit("the test", lambda: None, lambda _: done.set())
    until(done.is_set)


def test_results_come_in_order_and_the_caller_does_not_wait(reader: FileReader, disk: Disk) -> None:
    results: list[str] = []
    start = time.perf_counter()
    reader.submit("a", disk.read, results.append)
    for i in range(20):
        reader.submit("b", lambda i=i: str(i), results.append)
    assert time.perf_counter() - start < LIMIT_SECONDS
    disk.answer.set()
    finish(reader)
    assert results == ["late", *map(str, range(20))]


def test_an_error_is_one_line(reader: FileReader, tmp_path: Path) -> None:
    reasons: list[str] = []
    for work in ((tmp_path / "none").read_bytes, tmp_path.read_bytes, Path("a\0b").read_bytes):
        reader.submit("a", work, fail=reasons.append)
    finish(reader)
    assert reasons[:2] == ["No such file or directory", "Is a directory"]
    assert len(reasons) == 3
    assert not any("\n" in reason for reason in reasons)


def test_a_hanging_job_is_abandoned_and_its_result_is_dropped(
    reader: FileReader, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[str] = []
    reasons: list[str] = []
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            reader.submit("the folder", disk.read, results.append, reasons.append)
        reader.submit("another", lambda: "at once", results.append)
        finish(reader)
        assert results == ["at once"]
        assert disk.reads == MAX_ABANDONED_JOBS, "further jobs there are refused"
        assert len(reasons) == 10
        assert all("does not answer" in reason for reason in reasons)
        assert sum("the folder" in record.message for record in caplog.records) == 1, "it is reported once"
        disk.answer.set()
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "file job"])
        reader.submit("the folder", lambda: "again", results.append)
        finish(reader)
    assert results == ["at once", "again"], "a late result is dropped"
    assert "the folder: answers again" in caplog.text


def test_only_the_newest_job_of_a_key_waits_and_the_queue_is_bounded(reader: FileReader, disk: Disk) -> None:
    results: list[int] = []
    reasons: list[str] = []
    reader.submit("a", disk.read)
    until(lambda: disk.reads)
    for i in range(1000):
        reader.submit("b", lambda i=i: i, results.append, key="one")
    for _ in range(1000):
        reader.submit("c", lambda: -1, results.append, reasons.append)
    finish_count = len(reasons)
    disk.answer.set()
    until(lambda: len(results) == MAX_QUEUED_JOBS)
    assert results[0] == 999
    assert finish_count == 1000 - (MAX_QUEUED_JOBS - 1)
    assert set(reasons) == {"too many files wait to be read or written"}


def test_a_failure_in_what_uses_a_result_does_not_end_the_reader(
    reader: FileReader, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise KeyError("a mistake of ours")

    reader.submit("a", lambda: 1, fail)
    finish(reader)
    assert "a mistake of ours" in caplog.text


def test_the_end_waits_for_writes_alone(disk: Disk, tmp_path: Path) -> None:
    reader = FileReader(5.0)
    reader.open()
    for i in range(50):
        reader.submit("a", lambda i=i: write(tmp_path / f"{i}.toml", "a = 1"), is_write=True)
    reader.submit("a", disk.read)
    start = time.perf_counter()
    reader.close()
    assert time.perf_counter() - start < 1.5
    assert len(list(tmp_path.iterdir())) == 50
    assert disk.reads == 0


def test_a_start_ends_after_the_limit_in_one_line(disk: Disk) -> None:
    reader = FileReader(LIMIT_SECONDS)
    with pytest.raises(InvalidValue, match=r"the presets: .* does not answer within 0.1 s"):
        reader.call("the presets", disk.read)
    with pytest.raises(FileNotFoundError):
        reader.call("the presets", Path("none").read_bytes)


class Desk:
    """A state and all that reads users' files, whose reader hangs in ``disk``."""

    def __init__(self, folder: Path, disk: Disk, reader: FileReader) -> None:
        self.state, self.disk, self.reader = State(), disk, reader
        tempo = Tempo(self.state)
        self.presets = PresetLibrary([folder], reader)
        self.cues = CuePlayer(self.state, Crossfader(self.state, tempo), tempo, self.presets, [folder / "cues"])
        self.fallback = Fallback(self.state, reader)
        self.maps = ControllerMap(self.state, (), folder / "desks", reader)

    def press(self, name: str, *arguments: object) -> None:
        start = time.perf_counter()
        self.state.set(name, arguments, "a desk")
        assert time.perf_counter() - start < LIMIT_SECONDS / 2, f"{name} waited"


@pytest.fixture
def desk(tmp_path: Path, disk: Disk, reader: FileReader) -> Desk:
    write(tmp_path / "ice.toml", "strength = 0.25\n")
    write(tmp_path / "cues" / "night.toml", "[[cue]]\nnumber = 1\npreset = 'ice'\n")
    desk = Desk(tmp_path, disk, reader)
    reader.submit("a", disk.read)
    until(lambda: disk.reads)
    return desk


def test_commands_act_from_memory_while_the_disk_hangs(desk: Desk, tmp_path: Path) -> None:
    desk.press("/fallback/still", str(tmp_path / "still.png"))
    desk.press("/cue/list", "night")
    desk.press("/cue/go")
    assert desk.cues.current is not None
    desk.press("/strength", 0.75)
    desk.press("/preset/save", "mine")
    desk.press("/preset", "ice")
    assert desk.state.snapshot().real("/strength") == 0.25
    desk.press("/preset", "mine")
    assert desk.state.snapshot().real("/strength") == 0.75
    assert desk.cues.names()[-1] == "night"
    assert desk.cues.status()["current"] == "1"
    desk.disk.answer.set()
    finish(desk.reader)
    assert (tmp_path / "mine.toml").is_file()
    assert desk.presets.find("mine").values == {"/strength": 0.75}
    assert "/fallback/still" in desk.state.last_rejection


def test_a_poll_from_before_a_save_does_not_take_the_preset_away(desk: Desk) -> None:
    desk.presets.poll()
    desk.press("/preset/save", "mine")
    write(desk.presets.folders[0] / "other.toml", "strength = 0.5\n")
    desk.disk.answer.set()
    until(lambda: "other" in desk.presets.presets)
    assert "mine" in desk.presets.presets
    finish(desk.reader)
    assert "mine" in desk.presets.presets


def test_a_save_that_fails_is_rejected_and_the_preset_stays_for_the_show(tmp_path: Path, reader: FileReader) -> None:
    folder = tmp_path / "presets"
    library = PresetLibrary([folder], reader)
    folder.write_text("no folder", encoding="utf-8")
    reasons: list[str] = []
    library.save("mine", {row.name: row.default for row in TABLE.values()} | {"/strength": 0.25}, fail=reasons.append)
    finish(reader)
    assert reasons == [f"preset 'mine' cannot be saved in {folder}: File exists"]
    assert library.find("mine").values == {"/strength": 0.25}


def test_learning_does_not_wait_and_the_binding_is_saved(desk: Desk, tmp_path: Path) -> None:
    desk.press("/learn", "strength")
    start = time.perf_counter()
    assert desk.maps.handle("/midi/cc/1/20", [64], "a controller")
    assert time.perf_counter() - start < LIMIT_SECONDS / 2
    desk.disk.answer.set()
    finish(desk.reader)
    assert "/midi/cc/1/20" in (tmp_path / "desks" / "learned.toml").read_text(encoding="utf-8")


def test_a_cue_list_that_is_new_or_edited_is_read_when_it_is_chosen(desk: Desk, tmp_path: Path) -> None:
    desk.disk.answer.set()
    finish(desk.reader)
    write(tmp_path / "cues" / "new.toml", "[[cue]]\nnumber = 7\n")
    desk.press("/cue/list", "new")
    until(lambda: desk.cues.list.name == "new")
    desk.press("/cue/list", "")
    write(tmp_path / "cues" / "new.toml", "[[cue]]\nnumber = 7\n[[cue]]\nnumber = 8\n")
    desk.press("/cue/list", "new")
    until(lambda: len(desk.cues.list.cues) == 2)
    desk.press("/cue/list", "nothing")
    until(lambda: "no cue list 'nothing'" in desk.state.last_rejection)


def test_a_go_right_after_a_new_list_starts_a_cue_of_that_list(desk: Desk, tmp_path: Path) -> None:
    desk.press("/cue/list", "night")
    write(tmp_path / "cues" / "new.toml", "[[cue]]\nnumber = 7\nvalues = { mix = 0.25 }\n")
    desk.press("/cue/list", "new")
    desk.press("/cue/go")
    assert desk.cues.current is None, "no cue of the list before"
    desk.press("/preset", "ice")
    desk.disk.answer.set()
    until(lambda: desk.cues.status()["current"] == "7")
    finish(desk.reader)
    assert desk.state.snapshot().real("/strength") == 0.25, "the preset after the cue"
    desk.press("/cue/list", "nothing")
    desk.press("/cue/goto", "9")
    until(lambda: "no cue '9'" in desk.state.last_rejection)
    desk.press("/cue/release")
    until(lambda: desk.cues.status()["current"] == "")


def test_a_panic_does_not_wait_for_a_list(desk: Desk, tmp_path: Path) -> None:
    write(tmp_path / "cues" / "new.toml", "[[cue]]\nnumber = 7\n")
    desk.press("/strength", 0.75)
    desk.press("/cue/list", "new")
    desk.press("/cue/go")
    desk.press("/panic")
    assert desk.state.snapshot().real("/strength") == TABLE["/strength"].default
    desk.disk.answer.set()
    until(lambda: desk.cues.list.name == "new")
    finish(desk.reader)
    assert desk.cues.current is None, "the go from before the panic is over"


def test_problems_are_bounded(tmp_path: Path) -> None:
    for i in range(150):
        write(tmp_path / f"bad{i:03} {'x' * 100}.toml", f"{'y' * 500} = \n")
    library = PresetLibrary([tmp_path])
    assert len(library.problems) == 101
    assert library.problems["…"] == "50 more files cannot be read"
    assert all(len(name) <= 80 and len(text) <= 300 for name, text in library.problems.items())
