"""Style that a linter does not know: module docstrings, and the length of files and of the README."""

from __future__ import annotations

import ast

import pytest

from tests.house.sources import ROOT, parse, python_files

#: A file is one idea; past this many lines there is a second one in it.
MAX_FILE_LINES = 350
MAX_README_LINES = 160


def test_every_module_opens_with_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if path.stat().st_size and not ast.get_docstring(parse(path))
    ]
    assert not silent, "without a module docstring: " + ", ".join(silent)


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    long = [f"{path.relative_to(ROOT)}: {count}" for path, count in lengths.items() if count > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines: " + ", ".join(long)


def test_the_readme_is_read_in_one_sitting() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES, f"README.md has {len(lines)} lines; move detail into bridge/guides"


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_nothing_is_left_as_a_note(word: str) -> None:
    marked = [
        str(path.relative_to(ROOT))
        for path in python_files("bridge", "engine", "touchdesigner")
        if word in path.read_text(encoding="utf-8")
    ]
    assert not marked, f"{word} in {', '.join(marked)}"
