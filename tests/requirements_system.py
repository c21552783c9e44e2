"""Tests that need a program of the system: they skip without it, and the run ends with the packages to install."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import pytest

#: The C++ compiler that the engine looks for.
COMPILER = {"Windows": "cl", "Darwin": "clang++"}.get(platform.system(), "g++")
#: Program → its Debian package. Any of the programs that are separated by a bar will do.
PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "oscsend": "liblo-tools",
        "chromium|chromium-browser|google-chrome": "chromium",
        "chromedriver": "chromium-driver",
        "qlcplus": "qlcplus",
        COMPILER: "g++",
    }
)
#: Markers of tests that may skip on a machine with every package: they need other hardware or another system.
PLATFORM_MARKERS = ("gpu", "windows", "macos")
_REASON = "needs the system package "


def find_program(names: str) -> str | None:
    """Return the path of the first program of ``names``, separated by bars, that is installed."""
    return next((path for name in names.split("|") if (path := shutil.which(name))), None)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where one of ``programs`` is missing, each a key of PACKAGES or a part of one."""
    keys = [next(key for key in PACKAGES if program in key.split("|")) for program in programs]
    missing = [PACKAGES[key] for key in keys if find_program(key) is None]
    return pytest.mark.skipif(bool(missing), reason=_REASON + " ".join(missing))


def needs_compiler() -> pytest.MarkDecorator:
    """Return a mark that skips a test where models cannot be compiled for the CPU."""
    if find_program(COMPILER) is None:
        return needs(COMPILER)
    import torch

    from engine.compile.accelerator import missing_requirement

    missing = missing_requirement(torch.device("cpu"))
    return pytest.mark.skipif(bool(missing), reason=missing)


def missing_packages(reason: str) -> list[str]:
    """Return the packages that a skipped test's reason names."""
    return reason.removeprefix(_REASON).split() if reason.startswith(_REASON) else []


def summarise(reasons: Iterable[str]) -> str:
    """Return one line that says how many tests skipped for want of packages and how to install them; "" for none."""
    skipped = [packages for reason in reasons if (packages := missing_packages(reason))]
    if not skipped:
        return ""
    requested = [package for package in PACKAGES.values() if any(package in packages for packages in skipped)]
    tests = "1 test" if len(skipped) == 1 else f"{len(skipped)} tests"
    return f"{tests} skipped for want of system packages: apt install {' '.join(requested)}"
