"""Spout against a stand-in for SpoutGL: names, order of rows, first frames, what it refuses, and OpenGL contexts."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.control.state import State
from bridge.show.sink_thread import SinkThread
from bridge.show.source_thread import SourceThread
from bridge.textures import TextureError, base, open_sink, open_source, spout
from engine.shared.frame import Frame, Pixels
from engine.shared.mailbox import Mailbox
from tests.bridge.textures.fake_spout import FakeSpout
from tests.bridge.textures.pictures import read_frame, upright
from tests.waiting import until


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSpout]:
    """Return a machine with Spout, where a sender is missed and looked for soon."""
    fake = FakeSpout()
    fake.install(monkeypatch)
    monkeypatch.setattr(base, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(spout, "SENDER_TIMEOUT_SECONDS", 0.1)
    yield fake
    assert fake.wrong_thread == []
    assert fake.contexts_open == 0


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def send_until_read(senders: FakeSpout, source: base.Source, picture: Pixels) -> Frame:
    """Send ``picture`` as "studio" again and again until ``source`` gives a frame."""
    frames: list[Frame | None] = []

    def read() -> bool:
        senders.send("studio", picture)
        frames.append(source.read(0.01))
        return frames[-1] is not None

    until(read, 5)
    assert frames[-1] is not None
    return frames[-1]


def test_a_picture_stays_upright_both_ways_and_keeps_its_colours(senders: FakeSpout) -> None:
    senders.send("studio", upright())
    with open_source("spout:studio") as source:
        assert np.array_equal(send_until_read(senders, source, upright()).pixels, upright())
    with open_sink("spout:stage") as sink, open_source("spout:stage") as back:
        for number in range(6):
            sink.write(Frame(upright(40, 30, shift=number)))
            frame = back.read(0.01)
        assert np.array_equal(senders.pictures["stage"], upright(40, 30, shift=5))
        assert frame is not None
        assert np.array_equal(frame.pixels, upright(40, 30, shift=5))
    assert senders.pictures.keys() == {"studio"}


@pytest.mark.parametrize(
    ("query", "names", "chosen"),
    [
        ("Arena", ["OBS", "Arena - Composition"], "Arena - Composition"),
        ("composition", ["OBS", "Arena - Composition"], "Arena - Composition"),
        ("phosphene-in", ["phosphene-in-2", "phosphene-in"], "phosphene-in"),
        ("", ["OBS", "Arena - Composition"], "OBS"),
    ],
)
def test_a_sender_is_chosen_by_its_name_or_a_part_of_it(
    senders: FakeSpout, query: str, names: list[str], chosen: str
) -> None:
    senders.empty_reads = 0
    for number, name in enumerate(names):
        senders.send(name, np.full((8, 8, 4), number + 1, np.uint8))
    with open_source(f"spout:{query}") as source:
        assert read_frame(source).pixels[0, 0, 0] == names.index(chosen) + 1


def test_pixel_buffers_that_are_not_filled_yet_are_no_black_frames(senders: FakeSpout) -> None:
    senders.empty_reads = 4
    with open_source("spout:studio") as source:
        frames = []
        for number in range(8):
            senders.send("studio", upright(shift=number))
            frames.append(source.read(0.01))
    assert [frame.pixels.any() for frame in frames if frame is not None] == [True] * (8 - 4)


def test_a_transparent_black_picture_is_shown_soon(senders: FakeSpout) -> None:
    senders.empty_reads = 0
    with open_source("spout:studio") as source:
        for _ in range(6):
            senders.send("studio", np.zeros((8, 8, 4), np.uint8))
            frame = source.read(0.01)
    assert frame is not None
    assert not frame.pixels.any()


def test_a_missing_sender_costs_one_line_and_no_context_and_its_loss_one_more(
    senders: FakeSpout, caplog: pytest.LogCaptureFixture
) -> None:
    with open_source("spout:studio") as source:
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            assert source.read(0.01) is None
        assert lines(caplog) == ["spout:studio: no such sender yet; waiting for it"]
        assert senders.contexts_created == 0
        for visit in range(1, 4):
            caplog.clear()
            assert send_until_read(senders, source, upright(16 * visit, 16)).size == (16 * visit, 16)
            del senders.pictures["studio"]
            until(lambda expected=visit: source.read(0.01) is None and source.losses == expected, 5)
            senders.stale = ["studio"]  # a program that died leaves its name in Spout's list
            end = time.perf_counter() + 0.3
            while time.perf_counter() < end:
                assert source.read(0.01) is None
            senders.stale = []
            assert lines(caplog) == ["spout:studio: the sender is gone; waiting for it to come back"]
        assert source.losses == 3
        assert senders.contexts_created == 1, "one context for the whole life of the source"


def test_without_opengl_a_source_says_so_once_and_a_sink_refuses(
    senders: FakeSpout, caplog: pytest.LogCaptureFixture
) -> None:
    senders.has_opengl = False
    senders.send("studio", upright())
    with open_source("spout:studio") as source:
        with pytest.raises(TextureError, match=r"^spout:studio: no OpenGL context"):
            read_frame(source)
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            assert source.read(0.01) is None
        senders.has_opengl, senders.empty_reads = True, 0
        read_frame(source)
    senders.has_opengl = False
    sink = open_sink("spout:stage")
    with pytest.raises(TextureError, match=r"^spout:stage: no OpenGL context"):
        sink.write(Frame(upright()))
    assert sink.frames == 0
    sink.close()
    assert lines(caplog) == []


def test_a_picture_that_spout_refuses_is_an_error_that_is_logged_once(
    senders: FakeSpout, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.show.sink_thread.RETRY_SECONDS", 0.01)
    senders.takes_images = False
    thread = SinkThread(open_sink("spout:stage"))
    thread.start()

    def write(count: int) -> None:
        for _ in range(count):
            thread.put(Frame(upright()))
            until(lambda: thread._frame is None)

    with caplog.at_level(logging.ERROR):
        write(10)
        assert thread.sink.frames == 0
        assert lines(caplog) == [
            "spout:stage: Spout refuses the picture of 32x24; see its program SpoutSettings",
        ]
        senders.takes_images = True
        write(3)
        until(lambda: thread.sink.frames)
        assert senders.contexts_created == 1
        thread.close()
    assert len(lines(caplog)) == 1


def test_the_thread_that_reads_closes_what_it_has_opened(senders: FakeSpout) -> None:
    box = Mailbox(multiprocessing.get_context("spawn"), 64)
    senders.empty_reads = 0
    senders.send("studio", upright())
    thread = SourceThread("source", open_source("spout:studio"), State(), box, lambda _: (8, 8))
    thread.start()
    until(lambda: thread.newest)
    assert senders.contexts_open == 1
    thread.close()
    assert senders.contexts_open == 0
    box.close()
