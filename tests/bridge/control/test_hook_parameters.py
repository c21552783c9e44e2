"""What a hook's file declares, read as text and never run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.control.hook_parameters import HookWatch, declare_all, declared
from bridge.control.state import State
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE, declare

GOOD = 'raise SystemExit("never run")\nPARAMETERS = {"amount": (0.5, 0, 1.0, "How much"), "speed": (1, -4, 4, "How fast")}\n'


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    declare([])


def test_parameters_are_read_and_checked_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "glow.py").write_text(GOOD)
    (tmp_path / "_draft.py").write_text("not python")
    rows = declare_all(str(tmp_path))
    assert [row.name for row in rows] == ["/hook/glow/on", "/hook/glow/amount", "/hook/glow/speed"]
    assert TABLE["/hook/glow/speed"].coerce([9.0]) == 4.0
    state = State()
    assert state.set("/hook/glow/amount", [0.7], "a desk")
    assert not state.set("/hook/glow/amount", ["much"], "a desk")
    assert state.snapshot()["/hook/glow/amount"] == 0.7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def after(:", "hook odd is no Python, line 1"),
        ("PARAMETERS = [1]", "hook odd, line 1: PARAMETERS must be a dictionary"),
        ("PARAMETERS = {'a': open('x')}", "hook odd, line 1: PARAMETERS must be plain values"),
        ("\nPARAMETERS = {'A b': (0, 0, 1, '')}", "hook odd, line 2: 'A b' is no name"),
        ("PARAMETERS = {'a': (0, 0, 1)}", "hook odd, line 1: a must be (default, least, most, help)"),
        ("PARAMETERS = {'a': (2, 0, 1, '')}", "hook odd, line 1: a must have least ≤ default ≤ most"),
        ("PARAMETERS = {'on': (0, 0, 1, '')}", "hook odd, line 1: 'on' is no name"),
    ],
)
def test_what_is_declared_wrongly_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(text)
    with pytest.raises(InvalidValue) as caught:
        declared(path)
    assert str(caught.value).startswith(told)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="no such folder"):
        declare_all(str(tmp_path / "nowhere"))


def test_files_come_change_and_go_while_a_show_runs(tmp_path: Path) -> None:
    state = State()
    watch = HookWatch(str(tmp_path), state)
    path = tmp_path / "glow.py"
    path.write_text(GOOD)
    watch.look()
    assert state.set("/hook/glow/amount", [0.9], "a desk")
    path.write_text(GOOD.replace('"speed"', '"pace"'))
    os.utime(path, ns=(7, 7))
    watch.look()
    assert "/hook/glow/speed" not in TABLE
    assert "/hook/glow/pace" in TABLE
    assert state.snapshot()["/hook/glow/amount"] == 0.9, "what was set stays"
    path.write_text("PARAMETERS = {")
    os.utime(path, ns=(8, 8))
    watch.look()
    assert "/hook/glow/pace" in TABLE, "a broken file keeps what it declared"
    path.unlink()
    watch.look()
    assert not [name for name in TABLE if name.startswith("/hook/")]
    watch.close()
