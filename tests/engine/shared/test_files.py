"""Atomic writes, the folder watcher, and the first line of an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.shared.errors import first_line
from engine.shared.files import FolderWatcher, replace_atomically, write_atomically


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    write_atomically(path, "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"

    def fail_half_way() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "old ü"
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset.toml"]


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "graph.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"x")
    assert (tmp_path / "graph.onnx").read_bytes() == b"x"


def test_a_file_is_loaded_once_until_it_changes(tmp_path: Path) -> None:
    loads: list[tuple[str, str | None]] = []

    def load(path: Path, previous: str | None) -> str:
        loads.append((path.stem, previous))
        return path.read_text()

    watcher = FolderWatcher(lambda: sorted(tmp_path.glob("*.txt")), load)
    assert not watcher.poll()
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    assert watcher.poll()
    assert list(watcher.entries.values()) == ["1", "2"]
    assert not watcher.poll()
    (tmp_path / "a.txt").write_text("other")
    (tmp_path / "b.txt").unlink()
    assert watcher.poll()
    assert list(watcher.entries.values()) == ["other"]
    assert loads == [("a", None), ("b", None), ("a", "1")]


def test_an_edit_of_the_same_length_is_noticed_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    watcher = FolderWatcher(lambda: [path], lambda p, _: p.read_text())
    watcher.poll()
    path.write_text("2")
    os.utime(path, ns=(1, 1))
    assert watcher.poll()
    assert watcher.entries == {path: "2"}


def test_a_folder_that_is_gone_has_no_files(tmp_path: Path) -> None:
    watcher = FolderWatcher(lambda: (tmp_path / "none").iterdir(), lambda p, _: p.name)
    assert not watcher.poll()
    assert watcher.entries == {}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n  two"), "two"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("x" * 1000), "x" * 400),
    ],
)
def test_the_first_line_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line
