"""Timers of 1 ms: asked for on Windows, in both processes, and no coarse clock is read anywhere."""

from __future__ import annotations

import ast
import ctypes
import sys
import time
from typing import Any

import pytest

from engine.shared import timer
from tests.house.sources import parse, python_files


class Library:
    """A library of Windows that records its calls; ``missing`` functions do not exist."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]], missing: tuple[str, ...]) -> None:
        self._name, self._calls, self._missing = name, calls, missing

    def __getattr__(self, function: str) -> Any:
        if function in self._missing:
            raise AttributeError(function)

        def call(*arguments: Any) -> int:
            if function == "SetProcessInformation":
                state = arguments[2]._obj
                arguments = (*arguments[:2], (state.Version, state.ControlMask, state.StateMask), arguments[3])
            self._calls.append((self._name, function, *arguments))
            return -1

        self.__dict__[function] = call
        return call


def windows_calls(monkeypatch: pytest.MonkeyPatch, *missing: str) -> list[tuple[Any, ...]]:
    """Return the calls that ``request_fine_timers`` makes on a Windows without the ``missing`` functions."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Library(name, calls, missing), raising=False)
    timer.request_fine_timers()
    return calls


def test_windows_is_asked_for_timers_of_a_millisecond_also_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    assert windows_calls(monkeypatch) == [
        ("winmm", "timeBeginPeriod", 1),
        ("kernel32", "GetCurrentProcess"),
        ("kernel32", "SetProcessInformation", -1, 4, (1, 0x5, 0), 12),
    ]


def test_an_older_windows_lacks_the_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert windows_calls(monkeypatch, "SetProcessInformation") == [("winmm", "timeBeginPeriod", 1)]


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise AssertionError("no library is opened")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "WinDLL", refuse, raising=False)
    timer.request_fine_timers()


@pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="these clocks differ on Windows")
def test_the_clock_is_the_systems_monotonic_one() -> None:
    names = {time.get_clock_info(clock).implementation for clock in ("perf_counter", "monotonic")}
    assert len(names) == 1, "so that moments can be compared between processes"
    assert abs(time.perf_counter() - time.monotonic()) < 0.1


def test_no_coarse_clock_is_read() -> None:
    reads = [
        f"{path}:{node.lineno}"
        for path in python_files("bridge", "engine", "touchdesigner")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("monotonic")
    ]
    assert not reads, "time.monotonic steps by 15.6 ms on Windows before Python 3.13: use time.perf_counter"
