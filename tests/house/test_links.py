"""Documentation: links, anchors and pictures lead somewhere, and the commands it names exist."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli import build_parser
from tests.house.sources import ROOT, TREES

PAGES = sorted([*ROOT.glob("*.md"), *(page for tree in (*TREES, ".github") for page in (ROOT / tree).rglob("*.md"))])
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
#: ``[text](target)`` and ``![text](target)``; the target ends at a space before a title.
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)")
CODE_BLOCK = re.compile(r"^( *)(?:```|~~~)[^\n]*\n(.*?)^\1(?:```|~~~) *$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MODULE_COMMAND = re.compile(r"\b(?:python3?|py) -m ([\w.]+)")
#: Folders of one machine. A page names paths of the repository, or of the reader's machine by their purpose.
ABSOLUTE_PATH = re.compile(r"(?<![\w.~:/-])/(?:tmp|home|root|work|usr|var|opt|etc|mnt|Users)(?:/|\b)")
#: Modules that are named in the documentation and come from elsewhere.
FOREIGN_MODULES = {"pip", "venv", "pytest", "build"}
#: Pages that mention former names.
HISTORY = {ROOT / "CHANGELOG.md"}
CURRENT = [page for page in PAGES if page not in HISTORY]
CURRENT_IDS = [str(page.relative_to(ROOT)) for page in CURRENT]


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """Return a page without its code."""
    return CODE_SPAN.sub("", CODE_BLOCK.sub("", text_of(page)))


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@functools.cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors of a page; repeated headings get -1, -2 and so on."""
    counts: Counter[str] = Counter()
    anchors = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text_of(page)))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", CODE_BLOCK.sub("", text_of(page)), re.MULTILINE):
        base = slug(heading)
        anchors.add(f"{base}-{counts[base]}" if counts[base] else base)
        counts[base] += 1
    return frozenset(anchors)


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's code blocks, with continued lines joined, and its code spans."""
    text = text_of(page)
    for block in CODE_BLOCK.finditer(text):
        yield from re.sub(r"\\\n\s*", "", block[2]).splitlines()
    yield from CODE_SPAN.findall(CODE_BLOCK.sub("", text))


def leads_nowhere(page: Path, target: str, root: Path) -> bool:
    """Return whether a relative link names no file below ``root``, or an anchor that its page lacks."""
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if name.startswith("/") or not path.is_relative_to(root) or not path.exists():
        return True
    return bool(anchor) and (path.suffix != ".md" or anchor not in anchors_of(path))


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    targets = [target for target in LINK.findall(prose_of(page)) if not re.match(r"[a-z]+:", target)]
    return [target for target in targets if leads_nowhere(page, target, root)]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by name."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: command for action in actions for name, command in action.choices.items()}


def command_error(words: list[str]) -> str:
    """Return what is wrong with the words after ``phosphene``: an unknown command or option; empty if nothing is."""
    parser = build_parser()
    while commands := subparsers(parser):
        if not words or words[0].startswith("-") or words[0].isupper():
            break
        name, *words = words
        if "|" in name:  # alternatives
            return next((f"no command {each}" for each in name.split("|") if each not in commands), "")
        if name not in commands:
            return f"no command {name}"
        parser = commands[name]
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    return next((f"no option {option}" for option in options if option not in parser._option_string_actions), "")


def phosphene_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after ``phosphene`` of every command on a page."""
    for line in code_lines(page):
        line = line.strip().removeprefix("$ ").split(" #")[0]
        if re.match(r"(\S*[\\/])?phosphene \S", line):
            yield shlex.split(line, posix=False)[1:]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_pictures_and_anchors_exist(page: Path) -> None:
    assert not broken_links(page)


@pytest.mark.parametrize("page", CURRENT, ids=CURRENT_IDS)
def test_named_modules_exist(page: Path) -> None:
    names = set(MODULE_COMMAND.findall(text_of(page))) - FOREIGN_MODULES
    assert not [name for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("page", CURRENT, ids=CURRENT_IDS)
def test_named_commands_and_options_exist(page: Path) -> None:
    errors = {" ".join(words): command_error(words) for words in phosphene_commands(page)}
    assert not {command: error for command, error in errors.items() if error}


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_no_absolute_paths(page: Path) -> None:
    assert not ABSOLUTE_PATH.findall(text_of(page))


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(prose_of(page))
        if not re.match(r"[a-z]+:|#", target)
    }
    assert not [
        page for page in PAGES if page not in linked and page != ROOT / "README.md" and ".github" not in page.parts
    ]


def test_the_checks_notice_mistakes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n\n[x](gone.md) [y](#a-b-c) [z](#nothing)\n", encoding="utf-8")
    assert anchors_of(page) == {"a-b-c"}
    assert broken_links(page, tmp_path) == ["gone.md", "#nothing"]
    assert command_error(["run", "--source", "camera:0"]) == ""
    assert command_error(["stress", "load|soak"]) == ""
    assert command_error(["play"]) == "no command play"
    assert command_error(["run", "--louder"]) == "no option --louder"
