"""The journal: what was set is there again after a crash, whatever tore the file; nothing is after an orderly end."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.presets import Library
from bridge.performance.session import Session, default_path, recover
from tests.waiting import until


def crashed(journal: Session) -> None:
    """The process is gone: what it would have written at its end is not."""
    journal._stop.set()
    journal._thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.json"


def kept(path: Path, *, crash: bool = True, **values: object) -> None:
    """A run in which these are set."""
    state = State({"/seed": 9})
    journal = Session(state, path)
    for name, value in values.items():
        assert state.set("/" + name, [value], "test")
    until(lambda: (found := recover(path)) is not None and len(found.values) == len(values))
    if crash:
        crashed(journal)
    else:
        journal.close()


def test_after_a_crash_what_was_set_is_there_and_what_was_not_is_not(path: Path) -> None:
    kept(path, prompt="violet ink", strength=0.25, freeze=True, size="128x128")
    found = recover(path)
    assert found is not None
    assert found.values == {"/prompt": "violet ink", "/strength": 0.25, "/freeze": True, "/size": "128x128"}
    assert path.stat().st_mode & 0o077 == 0 or os.name == "nt" or path.parent.stat().st_mode & 0o077 == 0


def test_after_an_orderly_end_nothing_is_resumed(path: Path) -> None:
    kept(path, crash=False, prompt="violet ink")
    assert recover(path) is None


def test_no_journal_is_nothing(path: Path) -> None:
    assert recover(path) is None
    assert default_path(0) is None
    assert str(default_path(9000)).endswith("journal-9000.json")


def test_a_second_crash_loses_nothing_of_the_first_run(path: Path) -> None:
    kept(path, prompt="violet ink")
    first = recover(path)
    assert first is not None
    state = State({"/seed": 9} | dict(first.values))
    journal = Session(state, path, recovered=first)
    state.set("/steps", [4], "test")
    until(lambda: (found := recover(path)) is not None and "/steps" in found.values)
    crashed(journal)
    again = recover(path)
    assert again is not None
    assert again.values == {"/prompt": "violet ink", "/steps": 4}


def test_a_value_that_was_set_back_stays_set_back(path: Path) -> None:
    state = State({"/steps": 3})
    journal = Session(state, path)
    state.set("/steps", [4], "test")
    until(lambda: (found := recover(path)) is not None and found.values == {"/steps": 4})
    state.set("/steps", [3], "test")
    until(lambda: (found := recover(path)) is not None and found.values == {"/steps": 3})
    crashed(journal)


@pytest.mark.parametrize("tear", ["cut", "empty", "bit", "garbage", "version", "gone"])
def test_a_torn_journal_is_told_and_the_one_before_is_taken(
    path: Path, tear: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = State()
    journal = Session(state, path)
    for steps in (2, 3, 4):
        state.set("/prompt", [f"at {steps}"], "test")
        until(lambda steps=steps: (found := recover(path)) is not None and found.values.get("/prompt") == f"at {steps}")
    crashed(journal)
    data = path.read_bytes()
    damaged = {
        "cut": data[:-5], "empty": b"", "bit": data[:80] + bytes([data[80] ^ 1]) + data[81:], "garbage": random.Random(1).randbytes(500),
        "version": data.replace(b'"version": 1', b'"version": 7'),
    }  # fmt: skip
    if tear == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[tear])
    found = recover(path)
    assert found is not None
    assert found.values == {"/prompt": "at 3"}
    assert ("damaged" in caplog.text) == (tear != "gone")


def test_both_torn_is_told_and_the_show_begins_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(path, prompt="violet ink")
    for each in (path, path.with_suffix(".old")):
        each.write_bytes(b"nothing")
    assert recover(path) is None
    assert caplog.text.count("damaged") == 2


def test_what_the_table_does_not_take_is_told_and_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = State()
    journal = Session(state, path)
    crashed(journal)
    values = {
        "/prompt": "kept",
        "/steps": 99,
        "/nothing": 1,
        "/strength": "much",
        "/panic": True,
        "/hook/gone/amount": 0.5,
    }
    journal._write({"version": 1, "clean": False, "values": values, "cues": "odd"})
    found = recover(path)
    assert found is not None
    assert found.values == {"/prompt": "kept", "/steps": 8}
    assert found.cues == {}
    assert caplog.text.count("the journal:") == 3


def test_a_full_disk_is_told_once_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    state = State()
    journal = Session(state, path)
    state.set("/prompt", ["violet ink"], "test")
    until(lambda: "No space left" in caplog.text)
    assert recover(path) is None
    monkeypatch.undo()
    until(lambda: (found := recover(path)) is not None and found.values == {"/prompt": "violet ink"})
    crashed(journal)


def test_the_cue_list_goes_on_where_it_stood(path: Path) -> None:
    def player(state: State) -> CuePlayer:
        tempo = Tempo(state)
        return CuePlayer(state, Crossfader(state, tempo), tempo, Library([]))

    state = State({"/cue/list": "demo", "/seed": 77})
    played = player(state)
    journal = Session(state, path, played.standing)
    for _ in range(2):
        state.set("/cue/go", [], "test")
    until(lambda: (found := recover(path)) is not None and found.cues.get("cue") == "2")
    crashed(journal)
    found = recover(path)
    assert found is not None
    again = State({"/cue/list": "demo", "/seed": 77} | dict(found.values))
    resumed = player(again)
    before = dict(again.snapshot())
    resumed.stand(found.cues)
    assert dict(again.snapshot()) == before, "nothing is started"
    assert resumed.status()["current"] == "2"
    assert resumed.standing() == played.standing()
    resumed.stand({"list": "demo", "cue": "999"})
    assert resumed.status()["current"] == "2"
    assert again.rejected == 1


def test_an_end_that_was_not_orderly_keeps_what_was_set(path: Path) -> None:
    kept(path, prompt="violet ink")
    before = recover(path)
    assert before is not None
    Session(State(dict(before.values)), path, recovered=before).close(orderly=False)
    again = recover(path)
    assert again is not None
    assert again.values == {"/prompt": "violet ink"}
