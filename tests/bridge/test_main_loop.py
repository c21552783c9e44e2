"""Waiting on the main thread: plain on most systems, and a run loop that is run on macOS."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from bridge import main_loop
from tests.bridge.textures.fake_syphon import FakeSyphon
from tests.waiting import until


@pytest.mark.parametrize("system", ["linux", "win32", "darwin without Foundation", "darwin"])
def test_a_wait_lasts_as_long_as_asked_and_ends_early_for_its_event(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "darwin":
        FakeSyphon().install(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "Foundation", None)
    monkeypatch.setattr(sys, "platform", system.partition(" ")[0])
    event = threading.Event()
    start = time.perf_counter()
    assert main_loop.wait(event, 0.15) is False
    main_loop.sleep(0.1)
    assert 0.25 <= time.perf_counter() - start < 1.0
    threading.Timer(0.05, event.set).start()
    start = time.perf_counter()
    assert main_loop.wait(event, 30.0) is True
    assert time.perf_counter() - start < 5.0
    assert main_loop.wait(event, 30.0) is True


def test_only_the_main_thread_runs_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeSyphon()
    mac.install(monkeypatch)
    mac.start_server("TouchDesigner", "studio")
    thread = threading.Thread(target=lambda: main_loop.sleep(0.05))
    thread.start()
    until(lambda: not thread.is_alive())
    assert mac.directory == []
    main_loop.sleep(0.05)
    assert [server.name for server in mac.directory] == ["studio"]
