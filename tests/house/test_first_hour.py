"""The first-hour guides: each step says how it works, how it fails and whether it was run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.sources import ROOT

GUIDES = ROOT / "bridge" / "guides"
PAGES = [GUIDES / f"first-hour-{system}.md" for system in ("windows", "macos", "linux-nvidia")]
COMPONENT_PAGE = ROOT / "touchdesigner" / "guide.md"
ROW = re.compile(r"^\| (Works|Fails|Run) \| (.+) \|$", re.MULTILINE)
#: What a page says is printed → the file that prints it.
PRINTED = {
    "cannot be used": "bridge/commands/run.py",
    "needs TouchDesigner": "touchdesigner/build.py",
    "Phosphene: saved": "touchdesigner/build.py",
    "lacks the parameters": "touchdesigner/build.py",
    "cannot be started": "touchdesigner/dats/PhospheneExt.py",
    "rebuild the component": "touchdesigner/dats/PhospheneExt.py",
    "no answer": "touchdesigner/dats/PhospheneExt.py",
    "in Arguments is not closed": "touchdesigner/dats/arguments.py",
}


def steps_of(page: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the numbered steps of a page, each with the rows (Works, Fails or Run; text) of its table."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {section.splitlines()[0]: ROW.findall(section) for section in sections}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_step_says_how_it_works_how_it_fails_and_whether_it_was_run(page: Path) -> None:
    steps = steps_of(page)
    assert [int(title.split(".")[0]) for title in steps] == list(range(1, len(steps) + 1))
    for title, rows in steps.items():
        names = [name for name, _ in rows]
        assert names == ["Works", *["Fails"] * (len(names) - 2), "Run"], title
        assert len(names) >= 3, title


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.stem)
def test_no_step_of_windows_or_macos_claims_to_have_been_run(page: Path) -> None:
    runs = [text for rows in steps_of(page).values() for name, text in rows if name == "Run"]
    assert runs
    assert not [text for text in runs if not re.match(r"Not (on Windows|on a Mac|in TouchDesigner)\b", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_contents_name_every_step(page: Path) -> None:
    contents = re.findall(r"(\d+)\. \[([^\]]+)\]", page.read_text(encoding="utf-8").split("\n## ")[0])
    assert [f"{number}. {title}" for number, title in contents] == list(steps_of(page))


@pytest.mark.parametrize("words", PRINTED)
def test_what_a_page_quotes_is_what_is_printed(words: str) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (*PAGES, COMPONENT_PAGE))
    assert words in text
    assert words in (ROOT / PRINTED[words]).read_text(encoding="utf-8")
