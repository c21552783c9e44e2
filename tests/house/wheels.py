"""Print for which system and Python each dependency has a wheel: ``python -m tests.house.wheels > table.md``.

Asks pip's index as ``pip download --only-binary=:all: --platform … --python-version …`` does, but fetches no wheel. The
markers are evaluated for the target, not for this machine. Needs the network; the rules are tested without it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: Processes of pip at the same time.
WORKERS = 2
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Text of a cell: the dependency is not asked for there, or has no wheel.
NOT_NEEDED, NO_WHEEL = "", "**none**"
#: Packages that PyPI has as a source alone, which fetches NVIDIA's own wheel where it is installed. They are not asked.
FROM_NVIDIA = {"tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs"}
SOURCE = "source"


@dataclass(frozen=True, eq=False)
class System:
    """A system that the README names: its values of the markers, and the tags of its wheels."""

    name: str
    markers: Mapping[str, str]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A system with a version of Python."""

    system: System
    python: str

    def environment(self, extra: str) -> dict[str, str]:
        """Return the markers' values, for ``packaging``."""
        version = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        implementation = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        return {**self.system.markers, **version, **implementation, "extra": extra}


def _markers(sys_platform: str, machine: str, system: str) -> dict[str, str]:
    os_name = "nt" if sys_platform == "win32" else "posix"
    return {
        "sys_platform": sys_platform,
        "platform_machine": machine,
        "platform_system": system,
        "os_name": os_name,
        "implementation_version": "",
        "platform_release": "",
        "platform_version": "",
    }


SYSTEMS = (
    System("Windows x86-64", _markers("win32", "AMD64", "Windows"), ("win_amd64",)),
    System("macOS 14 arm64", _markers("darwin", "arm64", "Darwin"), ("macosx_14_0_arm64",)),
    System(
        "Linux x86-64",
        _markers("linux", "x86_64", "Linux"),
        ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1))),
    ),
)
TARGETS = tuple(Target(system, python) for system in SYSTEMS for python in PYTHONS)


def read_dependencies(project: Mapping[str, dict[str, list[str]]]) -> dict[str, list[Requirement]]:
    """Return the requirements of the package ("run") and of each extra; `bootstrap run` installs both and ndi."""
    groups = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


def read_lock(text: str) -> list[Requirement]:
    """Return the pins of requirements.lock."""
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def applies(requirement: Requirement, target: Target, extra: str = "") -> bool:
    """Return whether a target needs a requirement."""
    return requirement.marker is None or requirement.marker.evaluate(target.environment(extra))


def pin(requirement: Requirement, lock: Iterable[Requirement], target: Target) -> Requirement:
    """Return the locked version of a requirement on a target, or the requirement itself."""
    name = canonicalize_name(requirement.name)
    return next((p for p in lock if canonicalize_name(p.name) == name and applies(p, target)), requirement)


def pip_command(requirements: Sequence[Requirement], target: Target, folder: str) -> list[str]:
    """Return the command that resolves requirements to wheels of a target, without their dependencies.

    PyPI alone is asked, whatever indexes a user has set. `install --dry-run` would hold `Requires-Python` against this
    Python: ``ask_pip`` compares it with the target's.
    """
    platforms = [argument for tag in target.system.tags for argument in ("--platform", tag)]
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    options.append("--ignore-requires-python")
    words = [f"{requirement.name}{requirement.specifier}" for requirement in requirements]
    version = ["--python-version", target.python, "--target", folder, "--report", "-"]
    return [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", *options, *version, *platforms, *words]


def ask_pip(requirements: Sequence[Requirement], target: Target) -> dict[str, str] | None:
    """Return the version of the wheel of each requirement by canonical name; None where one of them has none."""
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(pip_command(requirements, target, folder), capture_output=True, text=True)
    if answer.returncode:
        return None
    return read_report(json.loads(answer.stdout), target)


def read_report(report: Mapping[str, Any], target: Target) -> dict[str, str] | None:
    """Return the versions in pip's report by canonical name; None where one is not for the target's Python."""
    entries = [entry["metadata"] for entry in report["install"]]
    pythons = [SpecifierSet(entry.get("requires_python") or "") for entry in entries]
    if not all(python.contains(f"{target.python}.0") for python in pythons):
        return None
    return {canonicalize_name(entry["name"]): Version(entry["version"]).public for entry in entries}


Ask = Callable[[Sequence[Requirement], Target], "dict[str, str] | None"]


def find_wheels(requirements: Sequence[Requirement], target: Target, ask: Ask = ask_pip) -> dict[str, str]:
    """Return the version of each wheel by canonical name, or NO_WHEEL: all at once, in halves where that fails."""
    versions = ask(requirements, target)
    if versions is not None:
        return versions
    if len(requirements) == 1:
        return {canonicalize_name(requirements[0].name): NO_WHEEL}
    middle = len(requirements) // 2
    return {**find_wheels(requirements[:middle], target, ask), **find_wheels(requirements[middle:], target, ask)}


def list_needed(
    target: Target, dependencies: Mapping[str, list[Requirement]], lock: list[Requirement]
) -> list[Requirement]:
    """Return all that a target needs, pinned: the dependencies of every extra, then the rest of the lock."""
    direct = [r for extra, rs in dependencies.items() for r in rs if applies(r, target, extra)]
    named = {canonicalize_name(r.name) for rs in dependencies.values() for r in rs}
    rest = [p for p in lock if canonicalize_name(p.name) not in named and applies(p, target)]
    pins = {canonicalize_name(r.name): pin(r, lock, target) for r in direct}
    return [r for r in (*pins.values(), *rest) if canonicalize_name(r.name) not in FROM_NVIDIA]


def summarize(versions: Mapping[str, str]) -> str:
    """Return one cell for a system, from the version for each Python: 2.0, or 1.0 (3.11), 2.0 (3.12, 3.13)."""
    pythons: dict[str, list[str]] = {}
    for python, version in versions.items():
        pythons.setdefault(version, []).append(python)
    if len(pythons) == 1:
        return next(iter(pythons))
    return ", ".join(f"{version} ({', '.join(names)})" for version, names in pythons.items() if version != NOT_NEEDED)


def table(dependencies: Mapping[str, list[Requirement]], wheels: Mapping[Target, Mapping[str, str]]) -> Iterable[str]:
    """Yield the lines of the table in Markdown: a row per dependency, then one for what those need."""
    systems = list(dict.fromkeys(target.system for target in wheels))
    extras: dict[str, list[str]] = {}
    for extra, requirements in dependencies.items():
        for requirement in requirements:
            extras.setdefault(canonicalize_name(requirement.name), []).append(extra)

    def row(name: str, used_by: str, texts: Mapping[Target, str]) -> str:
        cells = [summarize({t.python: text for t, text in texts.items() if t.system is system}) for system in systems]
        return f"| {name} | {used_by} | " + " | ".join(cells) + " |"

    def rest(versions: Mapping[str, str]) -> str:
        others = {name: version for name, version in versions.items() if name not in extras}
        missing = [name for name, version in others.items() if version == NO_WHEEL]
        return f"**none: {', '.join(missing)}**" if missing else f"all {len(others)}"

    yield "| Package | For | " + " | ".join(system.name for system in systems) + " |"
    yield "| --- " * (len(systems) + 2) + "|"
    for name, used_by in extras.items():
        default = SOURCE if name in FROM_NVIDIA else NOT_NEEDED
        yield row(name, ", ".join(dict.fromkeys(used_by)), {t: v.get(name, default) for t, v in wheels.items()})
    yield row("what these need", "requirements.lock", {t: rest(v) for t, v in wheels.items()})


def main() -> int:
    """Print the table; return 1 where a wheel is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = read_dependencies(project)
    lock = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    requirements = [list_needed(target, dependencies, lock) for target in TARGETS]
    with ThreadPoolExecutor(WORKERS) as pool:
        wheels = dict(zip(TARGETS, pool.map(find_wheels, requirements, TARGETS), strict=True))
    day = datetime.date.today()
    print(f"`python -m tests.house.wheels`, {day.day} {day:%B %Y}, Python {', '.join(PYTHONS)}:\n")
    print("\n".join(table(dependencies, wheels)))
    return int(any(NO_WHEEL in versions.values() for versions in wheels.values()))


if __name__ == "__main__":
    sys.exit(main())
