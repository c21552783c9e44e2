"""The status line: rewritten in place on a terminal, also on a console of Windows that follows no escape codes."""

from __future__ import annotations

import ctypes
import io
import sys
from dataclasses import replace
from typing import Any

import pytest

from bridge import console
from bridge.commands import status_line
from bridge.commands.status_line import StatusLine, format_status
from tests.bridge.panel.test_metrics import STATUS

assert STATUS.engine is not None
ENGINE = STATUS.engine


class Terminal(io.StringIO):
    """A terminal. ``screen`` is what it shows; escape codes are text where it does not follow them."""

    def __init__(self, follows_codes: bool) -> None:
        super().__init__()
        self._follows_codes = follows_codes

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        lines, column = [""], 0
        text = self.getvalue()
        if self._follows_codes:
            text = text.replace("\033[K", "\0")
        for character in text:
            if character == "\n":
                lines.append("")
                column = 0
            elif character == "\r":
                column = 0
            elif character == "\0":
                lines[-1] = lines[-1][:column]
            else:
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


class WindowsConsole:
    """kernel32 of a Windows whose console takes ``mode`` or refuses it."""

    def __init__(self, takes_codes: bool, is_console: bool = True) -> None:
        self.mode, self._takes_codes, self._is_console = 3, takes_codes, is_console
        self.GetStdHandle = self._function(lambda number: {-11: 7}[number])
        self.GetConsoleMode = self._function(self._get)
        self.SetConsoleMode = self._function(self._set)

    def _function(self, call: Any) -> Any:
        return type("Function", (), {"__call__": lambda _self, *arguments: call(*arguments)})()

    def _get(self, handle: int, mode: Any) -> int:
        assert handle == 7
        mode._obj.value = self.mode
        return int(self._is_console)

    def _set(self, handle: int, mode: int) -> int:
        assert handle == 7
        if not self._takes_codes:
            return 0
        self.mode = mode
        return 1


def write_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show statuses that get shorter and longer, a line between them, and the last one."""
    texts = iter(["14.9 fps  frames 120  loading …", "9 fps", "15.0 fps  frames 130", "done"])
    monkeypatch.setattr(status_line, "format_status", lambda _status: next(texts))
    show: Any = type("Show", (), {"status": lambda self: None})()
    line = StatusLine()
    line.update(show)
    line._next = 0.0
    line.update(show)
    line.show_first_frame(1.25)
    line._next = 0.0
    line.update(show)
    line.end(show)


SHOWN = ["first transformed frame 1.2 s after the start", "done", ""]


@pytest.mark.parametrize("takes_codes", [True, False])
def test_a_console_of_windows_shows_no_escape_codes(monkeypatch: pytest.MonkeyPatch, takes_codes: bool) -> None:
    kernel32 = WindowsConsole(takes_codes)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel32, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    terminal = Terminal(follows_codes=takes_codes)
    monkeypatch.setattr(sys, "stdout", terminal)
    write_lines(monkeypatch)
    assert terminal.screen == SHOWN
    assert kernel32.mode == (3 | 4 if takes_codes else 3)


def test_a_terminal_elsewhere_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(follows_codes=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "platform", "linux")
    write_lines(monkeypatch)
    assert terminal.screen == SHOWN


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "platform", system)
    assert not console.enable_escape_codes()
    write_lines(monkeypatch)
    assert stream.getvalue().splitlines() == [
        "14.9 fps  frames 120  loading …",
        "9 fps",
        SHOWN[0],
        "15.0 fps  frames 130",
        "done",
    ]


def test_what_is_no_console_of_windows_gets_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: WindowsConsole(True, is_console=False), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "stdout", Terminal(follows_codes=False))
    assert not console.enable_escape_codes()
    monkeypatch.delattr(ctypes, "WinDLL", raising=False)
    assert not console.enable_escape_codes()


def test_the_share_of_the_regions_is_shown_where_there_is_room() -> None:
    assert "regions" not in format_status(replace(STATUS, engine=replace(ENGINE, regions=False)))
    line = format_status(STATUS)
    assert line.endswith("  refused 5  regions 25%")
    assert len(line) <= 80
    crowded = replace(STATUS, frames=10**12, engine=replace(ENGINE, skipped=10**12))
    assert "regions" not in format_status(crowded)
