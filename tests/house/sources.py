"""The repository's Python files, as the house tests read them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Trees with Python code of this project.
TREES = ("bridge", "engine", "presets", "touchdesigner", "tests")


@functools.cache
def python_files(*trees: str) -> tuple[Path, ...]:
    """Return the Python files below ``trees`` (default: all of them), sorted."""
    return tuple(sorted(path for tree in trees or TREES for path in (ROOT / tree).rglob("*.py")))


@functools.cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of ``bridge`` and ``engine`` by its dotted name."""
    return {module_name(path): path for path in python_files("bridge", "engine")}
