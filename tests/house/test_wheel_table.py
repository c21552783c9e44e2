"""The table of wheels: markers are evaluated for the target, missing wheels are named; and pyproject.toml's markers."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.shared.torch_build import TORCH_VERSIONS
from tests.house.sources import ROOT
from tests.house.wheels import (
    FROM_NVIDIA,
    NO_WHEEL,
    PYTHONS,
    SYSTEMS,
    System,
    Target,
    applies,
    find_wheels,
    list_needed,
    pin,
    pip_command,
    read_dependencies,
    read_lock,
    read_report,
    table,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = read_dependencies(PROJECT)
LOCK = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
WINDOWS, MACOS, LINUX = SYSTEMS
ARM = System("Windows ARM64", {**WINDOWS.markers, "platform_machine": "ARM64"}, ("win_arm64",))


def names(target: Target, extra: str) -> set[str]:
    """Return what a target needs for an extra, or to "run"."""
    return {canonicalize_name(r.name) for r in DEPENDENCIES[extra] if applies(r, target, extra)}


@pytest.mark.parametrize(
    ("system", "python", "spout", "syphon", "rtmidi"),
    [
        (WINDOWS, "3.11", True, False, True),
        (WINDOWS, "3.13", True, False, False),
        (WINDOWS, "3.14", False, False, False),
        (ARM, "3.12", False, False, False),
        (MACOS, "3.12", False, True, True),
        (MACOS, "3.14", False, True, False),
        (LINUX, "3.12", False, False, True),
        (LINUX, "3.13", False, False, False),
    ],
)
def test_optional_packages_are_asked_for_where_they_have_wheels(
    system: System, python: str, spout: bool, syphon: bool, rtmidi: bool
) -> None:
    target = Target(system, python)
    assert ("spoutgl" in names(target, "run")) == ("spoutgl" in names(target, "spout")) == spout
    assert ("syphon-python" in names(target, "run")) == syphon
    assert ("python-rtmidi" in names(target, "desks")) == rtmidi
    assert "torch" in names(target, "run")


def test_arm_windows_asks_for_no_ndi() -> None:
    assert "cyndilib" not in names(Target(ARM, "3.12"), "ndi")
    assert "cyndilib" in names(Target(WINDOWS, "3.14"), "ndi")


def test_torch_has_the_bounds_that_the_program_names() -> None:
    assert TORCH_VERSIONS in PROJECT["dependencies"]


def test_a_pin_is_the_one_for_the_target() -> None:
    lock = [Requirement("av==18 ; python_version < '3.12'"), Requirement("av==19 ; python_version >= '3.12'")]
    assert str(pin(Requirement("AV>=14"), lock, Target(WINDOWS, "3.11")).specifier) == "==18"
    assert str(pin(Requirement("av>=14"), lock, Target(WINDOWS, "3.12")).specifier) == "==19"
    assert str(pin(Requirement("x>=1"), lock, Target(WINDOWS, "3.12"))) == "x>=1"


def test_a_target_needs_the_direct_dependencies_and_the_rest_of_the_lock_once() -> None:
    for system in SYSTEMS:
        for python in PYTHONS:
            packages = [canonicalize_name(r.name) for r in list_needed(Target(system, python), DEPENDENCIES, LOCK)]
            assert len(packages) == len(set(packages))
            assert {"torch", "numpy", "typing-extensions", "cyndilib"} <= set(packages)
            assert not FROM_NVIDIA & set(packages)
            assert ("colorama" in packages) == (system is WINDOWS)


def test_the_command_asks_for_wheels_of_the_target_alone() -> None:
    command = pip_command([Requirement("torch==2.13.0; sys_platform == 'win32'")], Target(MACOS, "3.14"), "folder")
    assert command[-1] == "torch==2.13.0"
    words = " ".join(command)
    for part in (
        "--only-binary=:all:",
        "--platform macosx_14_0_arm64",
        "--python-version 3.14",
        "--no-deps",
        "--dry-run",
    ):
        assert part in words


def test_a_report_is_read_and_held_against_the_targets_python() -> None:
    report = {"install": [{"metadata": {"name": "Some_Package", "version": "1.2", "requires_python": ">=3.12,<3.14"}}]}
    assert read_report(report, Target(LINUX, "3.13")) == {"some-package": "1.2"}
    assert read_report(report, Target(LINUX, "3.11")) is None
    assert read_report(report, Target(LINUX, "3.14")) is None


def test_missing_wheels_are_named_and_the_others_stay() -> None:
    calls: list[int] = []

    def ask(requirements: Sequence[Requirement], target: Target) -> dict[str, str] | None:
        calls.append(len(requirements))
        return None if any(r.name in ("B", "d") for r in requirements) else {r.name: "1" for r in requirements}

    requirements = [Requirement(name) for name in ("a", "B", "c", "d")]
    assert find_wheels(requirements, Target(LINUX, "3.13"), ask) == {"a": "1", "b": NO_WHEEL, "c": "1", "d": NO_WHEEL}
    assert calls == [4, 2, 1, 1, 2, 1, 1]


def test_the_table_has_a_row_per_dependency_and_one_for_the_rest() -> None:
    dependencies = {"run": [Requirement("torch>=2")], "ndi": [Requirement("cyndilib"), Requirement("torch")]}
    wheels = {
        Target(WINDOWS, "3.12"): {"torch": "2.12", "cyndilib": NO_WHEEL, "idna": "3"},
        Target(WINDOWS, "3.13"): {"torch": "2.13", "cyndilib": NO_WHEEL, "idna": "3"},
        Target(LINUX, "3.12"): {"torch": "2.13", "idna": NO_WHEEL},
        Target(LINUX, "3.13"): {"torch": "2.13", "cyndilib": "1", "idna": "3"},
    }
    assert list(table(dependencies, wheels)) == [
        "| Package | For | Windows x86-64 | Linux x86-64 |",
        "| --- | --- | --- | --- |",
        "| torch | run, ndi | 2.12 (3.12), 2.13 (3.13) | 2.13 |",
        f"| cyndilib | ndi | {NO_WHEEL} | 1 (3.13) |",
        "| what these need | requirements.lock | all 1 | **none: idna** (3.12), all 1 (3.13) |",
    ]
