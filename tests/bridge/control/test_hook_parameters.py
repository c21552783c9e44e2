"""What a hook's file declares, read as text and never run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.control.hook_parameters import HookWatch, declare_all, parse_parameters
from bridge.control.state import State
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE, declare
from engine.shared.user_files import MAX_HOOK_BYTES

VALID_HOOK = """raise SystemExit("never run")
PARAMETERS = {"amount": (0.5, 0, 1.0, "How much"), "speed": (1, -4, 4, "How fast")}
"""


@pytest.fixture(autouse=True)
def restore_table() -> Iterator[None]:
    yield
    declare([])


def test_parameters_are_read_and_checked_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "glow.py").write_text(VALID_HOOK)
    (tmp_path / "_draft.py").write_text("not python")
    rows = declare_all(str(tmp_path))
    assert [row.name for row in rows] == ["/hook/glow/on", "/hook/glow/amount", "/hook/glow/speed"]
    assert TABLE["/hook/glow/speed"].coerce([9.0]) == 4.0
    state = State()
    assert state.set("/hook/glow/amount", [0.7], "a desk")
    assert not state.set("/hook/glow/amount", ["much"], "a desk")
    assert state.snapshot()["/hook/glow/amount"] == 0.7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def after(:", "hook odd is not valid Python, line 1"),
        ("PARAMETERS = [1]", "hook odd, line 1: PARAMETERS must be a dictionary"),
        ("PARAMETERS = {'a': open('x')}", "hook odd, line 1: PARAMETERS must be plain values"),
        ("\nPARAMETERS = {'A b': (0, 0, 1, '')}", "hook odd, line 2: 'A b' is not a valid"),
        ("PARAMETERS = {'a': (0, 0, 1)}", "hook odd, line 1: a must be (default, min, max, help)"),
        ("PARAMETERS = {'a': (2, 0, 1, '')}", "hook odd, line 1: a must satisfy min ≤ default ≤ max"),
        ("PARAMETERS = {'on': (0, 0, 1, '')}", "hook odd, line 1: 'on' is not a valid"),
    ],
)
def test_an_invalid_declaration_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(text)
    with pytest.raises(InvalidValue) as error:
        parse_parameters(path)
    assert str(error.value).startswith(message)


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="no such folder"):
        declare_all(str(tmp_path / "nowhere"))


def test_hook_files_may_be_added_changed_and_deleted_during_a_show(tmp_path: Path) -> None:
    state = State()
    watch = HookWatch(str(tmp_path), state)
    path = tmp_path / "glow.py"
    path.write_text(VALID_HOOK)
    watch.poll()
    assert state.set("/hook/glow/amount", [0.9], "a desk")
    path.write_text(VALID_HOOK.replace('"speed"', '"pace"'))
    os.utime(path, ns=(7, 7))
    watch.poll()
    assert "/hook/glow/speed" not in TABLE
    assert "/hook/glow/pace" in TABLE
    assert state.snapshot()["/hook/glow/amount"] == 0.9, "values that were set stay"
    path.write_text("PARAMETERS = {")
    os.utime(path, ns=(8, 8))
    watch.poll()
    assert "/hook/glow/pace" in TABLE, "an invalid file keeps its earlier parameters"
    path.unlink()
    watch.poll()
    assert not [name for name in TABLE if name.startswith("/hook/")]
    watch.close()


@pytest.mark.parametrize(
    "text",
    [
        "PARAMETERS = {[]: (0, 0, 1, '')}",
        "PARAMETERS = {'a': (0, 0, 1" + "0" * 400 + ", '')}",
        "PARAMETERS = {'a': (0, 0, 1e999, '')}",
        "PARAMETERS = " + "-" * 100_000 + "1",
        "PARAMETERS = " + "[" * 10_000,
        "PARAMETERS = " + "a." * 50_000 + "a",
        "a\0b",
        "x = 1\n" * 100_000,
        "f'" + "{a}" * (MAX_HOOK_BYTES // 3) + "'",
    ],
)
def test_what_python_itself_stumbles_over_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(InvalidValue, match="hook odd") as error:
        declare_all(str(tmp_path))
    assert "\n" not in str(error.value)
