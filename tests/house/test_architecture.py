"""The architecture pages: the walks of a frame and of a parameter are short, go nowhere twice and name what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.sources import ROOT, parse

#: Page and heading of a walk → its maximum number of steps.
WALKS = {
    ("engine/README.md", "A frame, from texture to texture"): 8,
    ("bridge/README.md", "A parameter, from the wire to the picture"): 7,
}
STEP = re.compile(r"^\| (\d+) \| \[[^\]]+\]\(([^)]+)\) \| `([\w.]+)` \|", re.MULTILINE)


def steps_of(page: str, heading: str) -> list[tuple[int, Path, str]]:
    """Return number, file and name of every step below a heading."""
    path = ROOT / page
    section = path.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(int(number), (path.parent / file).resolve(), name) for number, file, name in STEP.findall(section)]


def defines(body: list[ast.stmt], name: str) -> bool:
    """Return whether a body defines ``name``, a function, a class or ``Class.method``."""
    first, _, rest = name.partition(".")
    nodes = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == first]
    return any(not rest or defines(node.body, rest) for node in nodes)


@pytest.mark.parametrize(("page", "heading"), WALKS, ids=[heading for _, heading in WALKS])
def test_a_walk_is_short_and_names_what_exists(page: str, heading: str) -> None:
    steps = steps_of(page, heading)
    assert [number for number, _, _ in steps] == list(range(1, len(steps) + 1))
    assert 1 < len(steps) <= WALKS[page, heading]
    assert len({(path, name) for _, path, name in steps}) == len(steps), "a step is visited twice"
    missing = [name for _, path, name in steps if not defines(parse(path).body, name)]
    assert not missing


@pytest.mark.parametrize("package", ["bridge", "engine"])
def test_every_folder_has_its_row(package: str) -> None:
    page = (ROOT / package / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT / package).parts[0] for path in (ROOT / package).glob("*/*.py")}
    assert not [folder for folder in folders if f"]({folder}" not in page]
