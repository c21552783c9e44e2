"""Import rules: two packages, one table of floors each, no import upward, sideways or in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.sources import ROOT, modules, parse, python_files

HEAVY = {"torch", "diffusers", "transformers"}

#: Folders and loose files of each package, ground floor first. A module may import its own folder and the floors below.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "engine": (
        ("shared", "pocket"),
        ("runtime",),
        ("compile", "image"),
        ("models",),
        ("adapters",),
        ("diffusion",),
        ("worker",),
        ("training",),
        ("bench",),
    ),
    "bridge": (
        ("toml_lines", "console", "install"),
        ("errors", "rate_limit", "toml_files", "images", "video_files", "logs", "main_loop", "named_memory"),
        ("file_reader",),
        ("textures", "network"),
        ("control",),
        ("osc", "performance", "engine_process"),
        ("show",),
        ("panel",),
        ("stress",),
        ("commands",),
        ("cli",),
        ("__main__", "bootstrap"),
        ("fresh",),
    ),
}
#: Folders of ``bridge`` that are no part of the running program: what draws the guides, and users' example programs.
OUTSIDE = ("bridge.guides",)
#: Commands that drive the engine in their process. They import it in the function that needs it, or for types alone.
COMMANDS_WITH_ENGINE = ("bridge.commands.",)
#: (importing module, imported module) that the table forbids, each with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("bridge.engine_process.process", "engine.worker.process"): "the name of what the spawned process runs",
    ("bridge.engine_process.process", "engine.models.hf_imports"): "the name of what a standby process imports ahead",
}


class Import:
    """One import: the module that holds it, the module that it names, and whether importing the first skips it."""

    def __init__(self, importer: str, imported: str, line: int, deferred: bool) -> None:
        self.importer, self.imported, self.line, self.deferred = importer, imported, line, deferred

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def is_for_types_alone(block: ast.AST) -> bool:
    """Return whether a block is ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"


def imports_of(module: str, path: Path) -> list[Import]:
    """Return every import in a file: statements at any depth, and strings that are the name of a module of ours."""
    tree, entries = parse(path), []
    deferred = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types_alone(block)
        for node in ast.walk(block)
    }

    def add(name: str, node: ast.stmt | ast.Constant) -> None:
        entries.append(Import(module, name, node.lineno, id(node) in deferred))

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                add(submodule if submodule in modules() else str(node.module), node)
        elif isinstance(node, ast.Constant) and "." in str(node.value) and node.value in modules():
            add(str(node.value), node)
    return entries


ALL = [entry for module, path in modules().items() for entry in imports_of(module, path)]
INTERNAL = [
    entry
    for entry in ALL
    if entry.imported.split(".")[0] in FLOORS
    and not entry.importer.startswith(OUTSIDE)
    and (entry.importer, entry.imported) not in EXCEPTIONS
]


def folder(module: str) -> str:
    """Return the folder or loose file of a package that a module belongs to, empty for the package itself."""
    return [*module.split("."), ""][1]


def floor(module: str) -> int:
    """Return the floor of a module; the package itself lies below all."""
    package, name = module.split(".")[0], folder(module)
    if not name:
        return -1
    return next(i for i, names in enumerate(FLOORS[package]) if name in names)


def circles(arrows: Iterable[tuple[str, str]]) -> list[str]:
    """Return the circles in a graph, one for each arrow that closes one in a depth-first walk."""
    graph: dict[str, list[str]] = {}
    for start, end in arrows:
        if start != end:
            graph.setdefault(start, []).append(end)
    closed: list[str] = []
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            closed.append(" → ".join([*path[path.index(node) :], node]))
        elif node not in finished:
            for successor in graph.get(node, ()):
                visit(successor, [*path, node])
            finished.add(node)

    for node in list(graph):
        visit(node, [])
    return closed


def report(entries: Iterable[object]) -> str:
    return "\n".join(sorted({str(entry) for entry in entries}))


def test_every_folder_has_a_floor() -> None:
    for package, floors in FLOORS.items():
        named = {name for names in floors for name in names}
        present = {folder(module) for module in modules() if module.startswith(package) and folder(module)}
        present -= {name.split(".")[1] for name in OUTSIDE if name.startswith(package)}
        assert present <= named, f"{package}: {sorted(present - named)} have no row in FLOORS"


def test_the_engine_never_imports_the_bridge() -> None:
    wrong = [e for e in ALL if e.importer.startswith("engine") and e.imported.split(".")[0] == "bridge"]
    assert not wrong, report(wrong)


def test_the_bridge_imports_only_the_shared_folder_of_the_engine() -> None:
    across = [e for e in INTERNAL if e.importer.startswith("bridge") and e.imported.split(".")[0] == "engine"]
    wrong = [
        entry
        for entry in across
        if folder(entry.imported) != "shared"
        and not (entry.importer.startswith(COMMANDS_WITH_ENGINE) and entry.deferred)
    ]
    assert not wrong, report(wrong)


def test_the_bridge_imports_no_tensor_library() -> None:
    wrong = [
        e
        for e in ALL
        if e.importer.startswith("bridge") and not e.importer.startswith(OUTSIDE) and e.imported.split(".")[0] in HEAVY
    ]
    assert not wrong, report(wrong)


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_no_import_goes_upward_or_sideways(package: str) -> None:
    inside = [e for e in INTERNAL if e.importer.split(".")[0] == e.imported.split(".")[0] == package]
    wrong = [
        entry
        for entry in inside
        if folder(entry.importer) != folder(entry.imported)
        and folder(entry.importer)
        and floor(entry.imported) >= floor(entry.importer)
    ]
    assert not wrong, report(wrong)


def test_no_circle_between_folders() -> None:
    arrows = [
        (".".join(e.importer.split(".")[:2]), ".".join(e.imported.split(".")[:2]))
        for e in INTERNAL
        if "." in e.imported
    ]
    assert not circles(arrows), report(circles(arrows))


def test_no_circle_between_files() -> None:
    arrows = [(e.importer, e.imported) for e in INTERNAL if e.imported in modules()]
    assert not circles(arrows), report(circles(arrows))


def test_every_exception_is_still_needed() -> None:
    present = {(entry.importer, entry.imported) for entry in ALL}
    assert set(EXCEPTIONS) <= present, f"remove {set(EXCEPTIONS) - present}"


@pytest.mark.parametrize(
    "module",
    ["bridge.show.show", "bridge.commands.run", "bridge.panel.server", "bridge.textures.ndi", "engine.shared.mailbox"],
)
def test_nothing_heavy_is_loaded_by_the_live_side(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_every_dependency_is_locked_at_an_accepted_version() -> None:
    locked: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert str(requirement.specifier).startswith("=="), line
            locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    project: Mapping[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for text in [*project["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        pins = locked.get(canonicalize_name(requirement.name))
        assert pins, f"{requirement.name} is not locked"
        for pin in pins:
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} is not {text}"


def test_no_mock_is_shipped() -> None:
    for path in python_files("bridge", "engine", "touchdesigner"):
        names = {node.names[0].name for node in ast.walk(parse(path)) if isinstance(node, ast.Import)}
        froms = {str(node.module) for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names | froms if name.startswith("unittest")}, f"{path} ships a mock"
