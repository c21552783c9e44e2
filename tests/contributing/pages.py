"""How-to pages as programs: the code blocks of a page, put where the page says, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bridge" / "guides" / "contributing"
#: What a page may change. Weights are linked: no page touches them.
TREES = ("bridge", "engine", "presets", "touchdesigner", "tests")
FILES = ("pyproject.toml", "README.md")
_BLOCK = re.compile(
    r"^(?P<how>New file|In) `(?P<path>[^`]+)`(?:, below `(?P<anchor>[^`]+)`)?:\n\n```\w+\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Edit:
    """One code block: a whole new file, or lines that go below the line that holds ``anchor``."""

    path: str
    code: str
    anchor: str = ""

    def apply(self, root: Path) -> None:
        """Make the edit in the copy at ``root``. The anchor must be on exactly one line of the file."""
        target = root / self.path
        if not self.anchor:
            assert not target.exists(), f"{self.path} exists already"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.code, encoding="utf-8")
            return
        lines = target.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [i for i, line in enumerate(lines) if self.anchor in line]
        assert len(places) == 1, f"{self.path} has {self.anchor!r} on {len(places)} lines"
        lines.insert(places[0] + 1, self.code)
        target.write_text("".join(lines), encoding="utf-8")


def read_edits(page: str) -> list[Edit]:
    """Return the edits that a page describes, in order."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    edits = [Edit(match["path"], match["code"], match["anchor"] or "") for match in _BLOCK.finditer(text)]
    described = len(re.findall(r"^(?:New file|In) `", text, re.MULTILINE))
    assert edits, f"{page} describes no edit"
    assert len(edits) == described, f"{page}: {described} edits are announced, {len(edits)} have a code block"
    return edits


def follow(page: str, root: Path) -> Path:
    """Copy the repository to ``root``, follow the page there, and return ``root``."""
    for tree in TREES:
        shutil.copytree(
            ROOT / tree, root / tree, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png", "*.svg")
        )
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    for weights in (ROOT / "engine" / "pocket").rglob("*.safetensors"):
        link = root / weights.relative_to(ROOT)
        try:
            link.hardlink_to(weights)
        except OSError:  # another file system, or one without links
            shutil.copyfile(weights, link)
    for edit in read_edits(page):
        edit.apply(root)
    return root


def run_python(root: Path, *arguments: str) -> str:
    """Run Python with the copy as its import path, and return what it printed."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
