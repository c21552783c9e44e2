"""CONTRIBUTING.md: every path that it names exists, and every name is defined where the table says."""

from __future__ import annotations

import ast
import re

import pytest

from tests.house.sources import ROOT, parse

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| ([^|`]+(?:`[^`]+`[^|]*)?) \| `([\w./]+/)` \| `(\w+\.py)` \| (.*) \|$", re.MULTILINE)
ROWS = [(task, folder + file, re.findall(r"`([^`]+)`", names)) for task, folder, file, names in _ROW.findall(TEXT)]
#: Questions that a newcomer must find an answer to.
ASKED = {
    "add a transport",
    "find where similarity is decided",
    "change a default",
    "add an OSC alias",
    "find why a frame is late",
}
MAX_LINES = 100


def definitions(path: str) -> set[str]:
    """Return the classes, functions and constants that a module defines itself."""
    names: set[str] = set()
    for node in parse(ROOT / path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_table_answers_what_newcomers_ask() -> None:
    assert {task for task, _, _ in ROWS} >= ASKED
    assert len(ROWS) >= 15
    table = TEXT[TEXT.index("## Where is") :]
    assert len(ROWS) == table.count("\n| ") - 2, "a row of the table is not read by this test"


@pytest.mark.parametrize(("task", "path", "names"), ROWS, ids=[row[0] for row in ROWS])
def test_the_file_that_a_row_names_holds_the_thing(task: str, path: str, names: list[str]) -> None:
    assert (ROOT / path).is_file()
    for name in names:
        if name.isidentifier():
            assert name in definitions(path), f"{path} does not define {name}"
        else:
            assert name in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"
    assert names or task not in ASKED


def test_every_other_path_exists() -> None:
    named = re.findall(r"`((?:bridge|engine|tests|\.ci|\.github)/[\w./-]+)`", TEXT)
    linked = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    commands = re.findall(r"(?<=[ `])tests/[\w/.]+", TEXT)
    missing = [path for path in {*named, *linked, *commands} if not (ROOT / path).exists()]
    assert not missing


def test_the_page_is_short() -> None:
    assert len(TEXT.splitlines()) <= MAX_LINES
