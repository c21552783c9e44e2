"""Atomic writes, the folder watcher, and the first line of an error."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from engine.shared.errors import first_line
from engine.shared.files import (
    FolderWatcher,
    create_atomically,
    create_new,
    replace_atomically,
    temporary_files,
    temporary_name,
    write_atomically,
)


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


def test_threads_that_replace_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    errors: list[OSError] = []

    def write_often(letter: str) -> None:
        try:
            for _ in range(50):
                write_atomically(path, letter * 5000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(path.read_text()) == 5000
            assert len(set(path.read_text())) == 1
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_a_link_is_not_followed_by_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(FileExistsError):
        create_new(tmp_path / "link")
    assert not (tmp_path / "mine").exists()


def test_a_name_that_came_into_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.zip"

    def write_slowly() -> None:
        with create_atomically(path) as temporary:
            temporary.write_text("new")
            path.write_text("mine")

    with pytest.raises(FileExistsError):
        write_slowly()
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_are_no_files_of_users(tmp_path: Path) -> None:
    path = tmp_path / "show[1].json"
    mine = {".show[1].backup.json", ".show[1].json", ".show1.4711.json", ".show[1].4711-0a1b2c3d.old", "show[1].json"}
    left = {".show[1].4711.json", ".show[1].4711-0a1b2c3d.json", temporary_name(path).name}
    for name in mine | left:
        (tmp_path / name).write_text("")
    assert {file.name for file in temporary_files(path)} == left


def test_a_scan_changes_nothing_until_it_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    watcher = FolderWatcher(lambda: [path], lambda p, _: p.read_text())
    scan = watcher.scan()
    assert watcher.entries == {}
    assert watcher.accept(scan)
    assert watcher.entries == {path: "1"}
    assert not watcher.accept(watcher.scan())


def test_files_that_are_left_after_the_time_are_loaded_by_the_next_scan(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.txt" for i in range(4)]
    for path in paths:
        path.write_text("1")

    def load(path: Path, _: str | None) -> str:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.03:
            pass
        return path.read_text()

    watcher = FolderWatcher(lambda: paths, load, 0.05)
    counts = []
    while watcher.poll():
        counts.append(len(watcher.entries))
    assert len(counts) > 1
    assert counts[-1] == len(paths)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_files_stay_while_the_folder_cannot_be_read_for_want_of_descriptors(number: int, tmp_path: Path) -> None:
    shortage = False
    (tmp_path / "a.txt").write_text("a")

    def list_files() -> list[Path]:
        if shortage:
            raise OSError(number, os.strerror(number))
        return list(tmp_path.iterdir())

    watcher = FolderWatcher(list_files, lambda path, _: path.read_text())
    assert watcher.poll()
    shortage = True
    assert not watcher.poll()
    assert list(watcher.entries.values()) == ["a"]
