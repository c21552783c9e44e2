"""Syphon against a stand-in for syphon-python whose servers appear only while the main thread runs its run loop."""

from __future__ import annotations

import multiprocessing
import threading
import time

import numpy as np
import pytest

from bridge import main_loop
from bridge.commands import sources
from bridge.control.state import State
from bridge.show.source_thread import SourceThread
from bridge.textures import base, open_sink, open_source, syphon
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox
from tests.bridge.textures.fake_syphon import FakeSyphon
from tests.bridge.textures.pictures import read_frame, upright


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> FakeSyphon:
    """Return a Mac with Syphon, where a server is missed and looked for soon."""
    fake = FakeSyphon()
    fake.install(monkeypatch)
    monkeypatch.setattr(base, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(syphon, "LIST_SECONDS", 0.05)
    return fake


def test_what_comes_in_is_upright_and_has_its_colours(mac: FakeSyphon) -> None:
    mac.start_server("TouchDesigner", "phosphene-in").picture = upright()
    with open_source("syphon:phosphene-in") as source:
        assert np.array_equal(read_frame(source).pixels, upright())


def test_what_goes_out_is_upright_and_has_its_colours(mac: FakeSyphon) -> None:
    with open_sink("syphon:stage") as sink:
        for size in ((32, 24), (40, 30)):
            sink.write(Frame(upright(*size)))
            assert np.array_equal(mac.published["stage"].picture, upright(*size))
    assert not mac.published


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("Arena:Composition", 0),
        ("Arena/Composition", 0),
        ("Composition", 0),
        ("Arena", 0),
        ("arena", 0),
        ("phosphene-in", 3),
        ("TouchDesigner:phosphene-in", 3),
        ("designer", 2),
        ("Simple Server", 1),
        ("", 0),
    ],
)
def test_a_server_is_chosen_by_application_and_name_one_of_both_or_a_part(
    mac: FakeSyphon, query: str, chosen: int
) -> None:
    servers = [
        ("Arena", "Composition"),
        ("Simple Server", ""),
        ("TouchDesigner", "phosphene-in-2"),
        ("TouchDesigner", "phosphene-in"),
    ]
    for number, (app_name, name) in enumerate(servers):
        mac.start_server(app_name, name).picture = np.full((8, 8, 4), number, np.uint8)
    with open_source(f"syphon:{query}") as source:
        assert read_frame(source).pixels[0, 0, 0] == chosen


def test_sources_lists_servers_as_touchdesigner_does(
    mac: FakeSyphon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "transports", lambda: [syphon.TRANSPORT])
    mac.start_server("TouchDesigner", "phosphene-in")
    mac.start_server("Simple Server", "")
    start = time.perf_counter()
    assert sources.main() == 0
    assert time.perf_counter() - start < 0.5, "no second wait for servers"
    assert capsys.readouterr().out.splitlines() == ["syphon:TouchDesigner:phosphene-in", "syphon:Simple Server"]


def test_a_server_that_starts_later_is_found_while_the_main_thread_waits(
    mac: FakeSyphon, caplog: pytest.LogCaptureFixture
) -> None:
    box = Mailbox(multiprocessing.get_context("spawn"), 64)
    thread = SourceThread("source", open_source("syphon:studio"), State(), box, lambda _: (32, 24))
    thread.start()
    stop = threading.Event()

    def wait_until(condition: object, seconds: float = 5.0) -> None:
        assert callable(condition)
        end = time.perf_counter() + seconds
        while not condition() and time.perf_counter() < end:
            main_loop.wait(stop, 0.1)
        assert condition()

    for visit in range(1, 3):
        surface = mac.start_server("TouchDesigner", "studio")
        surface.picture = upright(16 * visit, 16)
        wait_until(lambda size=(16 * visit, 16): thread.newest is not None and thread.newest.size == size)
        assert np.array_equal(thread.newest.pixels, upright(16 * visit, 16))  # type: ignore[union-attr]
        mac.end_server(surface)
        wait_until(lambda expected=visit: thread.source.losses == expected)
    thread.close()
    box.close()
    assert [record.getMessage() for record in caplog.records] == [
        "syphon:studio: no such server yet; waiting for it",
        "syphon:studio: the server is gone; waiting for it to come back",
        "syphon:studio: the server is gone; waiting for it to come back",
    ]


def test_our_server_stays_in_the_lists_of_programs_that_start_later(mac: FakeSyphon) -> None:
    with open_sink("syphon:stage") as sink:
        sink.write(Frame(upright()))
        mac.request_servers()
        main_loop.wait(threading.Event(), 0.1)
        assert mac.elsewhere == {"stage"}


def test_other_threads_only_read_the_directory(mac: FakeSyphon) -> None:
    mac.start_server("TouchDesigner", "studio")
    listed: list[list[str]] = []

    def look() -> None:
        start = time.perf_counter()
        listed.append(syphon.list_servers())
        assert time.perf_counter() - start < 0.5
        listed.append(["in time"])

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(5)
        main_loop.sleep(0.05)
    assert listed == [[], ["in time"], ["TouchDesigner:studio"], ["in time"]]
