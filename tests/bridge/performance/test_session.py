"""The saved session: recovered after a crash, even from a damaged file; not after a clean exit."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.presets import PresetLibrary
from bridge.performance.session import Session, default_path, recover
from tests.waiting import until


def crash(session: Session) -> None:
    """Stop saving without a clean exit."""
    session._stop.set()
    session._thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.json"


def run(path: Path, *, clean: bool = False, **values: object) -> None:
    """Save a session in which these values are set."""
    state = State({"/seed": 9})
    session = Session(state, path)
    for name, value in values.items():
        assert state.set("/" + name, [value], "test")
    until(lambda: (recovered := recover(path)) is not None and len(recovered.values) == len(values))
    if clean:
        session.close()
    else:
        crash(session)


def test_after_a_crash_the_values_that_were_set_are_recovered(path: Path) -> None:
    run(path, prompt="violet ink", strength=0.25, freeze=True, size="128x128")
    recovered = recover(path)
    assert recovered is not None
    assert recovered.values == {"/prompt": "violet ink", "/strength": 0.25, "/freeze": True, "/size": "128x128"}
    assert path.stat().st_mode & 0o077 == 0 or os.name == "nt" or path.parent.stat().st_mode & 0o077 == 0


def test_after_a_clean_exit_nothing_is_recovered(path: Path) -> None:
    run(path, clean=True, prompt="violet ink")
    assert recover(path) is None


def test_without_a_file_nothing_is_recovered(path: Path) -> None:
    assert recover(path) is None
    assert default_path(0) is None
    assert str(default_path(9000)).endswith("journal-9000.json")


def test_the_temporary_file_of_a_killed_process_is_deleted(path: Path) -> None:
    path.parent.mkdir()
    temporary = path.with_name(f".{path.stem}.4711{path.suffix}")
    temporary.write_bytes(b"half a sa")
    run(path, prompt="violet ink")
    assert not temporary.exists()


def test_a_second_crash_loses_nothing_of_the_first_session(path: Path) -> None:
    run(path, prompt="violet ink")
    first = recover(path)
    assert first is not None
    state = State({"/seed": 9} | dict(first.values))
    session = Session(state, path, recovered=first)
    state.set("/steps", [4], "test")
    until(lambda: (recovered := recover(path)) is not None and "/steps" in recovered.values)
    crash(session)
    second = recover(path)
    assert second is not None
    assert second.values == {"/prompt": "violet ink", "/steps": 4}


def test_a_value_set_back_to_its_initial_value_is_saved(path: Path) -> None:
    state = State({"/steps": 3})
    session = Session(state, path)
    state.set("/steps", [4], "test")
    until(lambda: (recovered := recover(path)) is not None and recovered.values == {"/steps": 4})
    state.set("/steps", [3], "test")
    until(lambda: (recovered := recover(path)) is not None and recovered.values == {"/steps": 3})
    crash(session)


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "garbage", "version", "gone"])
def test_a_damaged_file_is_reported_and_the_previous_one_is_recovered(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = State()
    session = Session(state, path)
    for steps in (2, 3, 4):
        state.set("/prompt", [f"at {steps}"], "test")
        until(
            lambda steps=steps: (
                (recovered := recover(path)) is not None and recovered.values.get("/prompt") == f"at {steps}"
            )
        )
    crash(session)
    data = path.read_bytes()
    contents = {
        "cut": data[:-5],
        "empty": b"",
        "bit": data[:80] + bytes([data[80] ^ 1]) + data[81:],
        "garbage": random.Random(1).randbytes(500),
        "version": data.replace(b'"version": 1', b'"version": 7'),
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    recovered = recover(path)
    assert recovered is not None
    assert recovered.values == {"/prompt": "at 3"}
    assert ("is damaged" in caplog.text) == (damage != "gone")


def test_two_damaged_files_are_reported_and_nothing_is_recovered(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(path, prompt="violet ink")
    for each in (path, path.with_suffix(".old")):
        each.write_bytes(b"nothing")
    assert recover(path) is None
    assert caplog.text.count("is damaged") == 2


def test_values_that_the_table_rejects_are_reported_and_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = State()
    session = Session(state, path)
    crash(session)
    values = {
        "/prompt": "ice",
        "/steps": 99,
        "/nothing": 1,
        "/strength": "much",
        "/panic": True,
        "/hook/gone/amount": 0.5,
    }
    session._write({"version": 1, "clean": False, "values": values, "cues": "odd"})
    recovered = recover(path)
    assert recovered is not None
    assert recovered.values == {"/prompt": "ice", "/steps": 50}
    assert recovered.cues == {}
    assert caplog.text.count("session file:") == 3


def test_a_full_disk_is_reported_once_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    state = State()
    session = Session(state, path)
    state.set("/prompt", ["violet ink"], "test")
    until(lambda: "No space left" in caplog.text)
    assert recover(path) is None
    monkeypatch.undo()
    until(lambda: (recovered := recover(path)) is not None and recovered.values == {"/prompt": "violet ink"})
    crash(session)


def test_the_position_in_the_cue_list_is_restored(path: Path) -> None:
    def make_player(state: State) -> CuePlayer:
        tempo = Tempo(state)
        return CuePlayer(state, Crossfader(state, tempo), tempo, PresetLibrary([]))

    state = State({"/cue/list": "demo", "/seed": 77})
    first_player = make_player(state)
    session = Session(state, path, first_player.position)
    for _ in range(2):
        state.set("/cue/go", [], "test")
    until(lambda: (recovered := recover(path)) is not None and recovered.cues.get("cue") == "2")
    crash(session)
    recovered = recover(path)
    assert recovered is not None
    second_state = State({"/cue/list": "demo", "/seed": 77} | dict(recovered.values))
    second_player = make_player(second_state)
    before = dict(second_state.snapshot())
    second_player.restore(recovered.cues)
    assert dict(second_state.snapshot()) == before, "no cue is started"
    assert second_player.status()["current"] == "2"
    assert second_player.position() == first_player.position()
    second_player.restore({"list": "demo", "cue": "999"})
    assert second_player.status()["current"] == "2"
    assert second_state.rejected == 1


def test_an_exit_that_is_not_clean_saves_the_recovered_values(path: Path) -> None:
    run(path, prompt="violet ink")
    before = recover(path)
    assert before is not None
    Session(State(dict(before.values)), path, recovered=before).close(clean=False)
    after = recover(path)
    assert after is not None
    assert after.values == {"/prompt": "violet ink"}


def test_a_file_of_the_first_release_is_recovered(path: Path) -> None:
    """The bytes are literal: the format on disk is a promise to installed shows."""
    text = b'{"version": 1, "clean": false, "values": {"/prompt": "violet ink", "/steps": 4}, "cues": {"list": "demo", '
    text += b'"cue": "2", "base": {"/mix": 0.5}}}'
    path.parent.mkdir()
    path.write_bytes(b"5a7e\n" + text)
    path.with_suffix(".old").write_bytes(
        b"f921bfd87d8da3f628d1df356de843c3c58005467217b934afd627e5576f6ac7" + b"\n" + text
    )
    recovered = recover(path)
    assert recovered is not None
    assert recovered.values == {"/prompt": "violet ink", "/steps": 4}
    assert recovered.cues == {"list": "demo", "cue": "2", "base": {"/mix": 0.5}}


def test_values_that_are_no_unicode_are_dropped_from_a_session_and_the_others_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "session.json"
    content = {
        "version": 1,
        "clean": False,
        "values": {"/prompt": "a\ud83d", "/seed": 7, "\ud83d": 1},
        "cues": {"list": "demo", "cue": "1", "base": {"/prompt": "\ud83d", "/strength": 0.25}},
    }
    text = json.dumps(content).encode()  # as older releases wrote it, with escapes
    path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    recovered = recover(path)
    assert recovered is not None
    assert recovered.values == {"/seed": 7}
    assert recovered.cues == {"list": "demo", "cue": "1", "base": {"/strength": 0.25}}
    assert sum("session file" in record.message for record in caplog.records) == 3
    for record in caplog.records:
        record.message.encode()


def test_the_session_is_saved_again_after_a_save_that_failed_for_any_reason(tmp_path: Path) -> None:
    state, failing, tries = State(), [True], list[None]()

    def position() -> dict[str, object]:
        tries.append(None)
        if failing[0]:
            raise RuntimeError("no position")
        return {"cue": "\ud83d"}

    session = Session(state, tmp_path / "session.json", position)
    state.put({"/seed": 5})
    until(lambda: len(tries) > 2, 5, "several tries")
    assert session.writes == 0
    failing[0] = False
    until(lambda: session.writes, 5, "a save")
    recovered = recover(tmp_path / "session.json")
    assert recovered is not None
    assert recovered.values == {"/seed": 5}
    session.close()
