"""Who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "diffusers", "transformers"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_engine_knows_nothing_of_the_bridge() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "bridge"], path


def test_the_bridge_takes_only_the_light_modules_of_the_engine() -> None:
    for path in (ROOT / "bridge").rglob("*.py"):
        names = imported(path)
        assert not [name for name in names if name.split(".")[0] in HEAVY], path
        taken = {name for name in names if name.split(".")[0] == "engine" and not name.startswith("engine.shared.")}
        assert not taken or path.parts[-2:] in (("commands", "render.py"), ("commands", "bench.py")), (
            f"{path} imports {taken}"
        )


@pytest.mark.parametrize(
    "module",
    ["bridge.show.show", "bridge.commands.run", "bridge.panel.server", "bridge.textures.ndi", "engine.shared.mailbox"],
)
def test_nothing_heavy_is_loaded_by_the_live_side(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_every_dependency_is_locked_at_a_version_that_is_admitted() -> None:
    locked: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert str(requirement.specifier).startswith("=="), line
            locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        pins = locked.get(canonicalize_name(requirement.name))
        assert pins, f"{requirement.name} is not locked"
        for pin in pins:
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} is not {text}"
