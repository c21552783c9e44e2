"""The link to an engine process: nobody waits for an engine that reads nothing."""

from __future__ import annotations

import multiprocessing
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from bridge.engine_process.engine_link import EngineLink
from bridge.stress.small_pipe import SMALL_PIPE_BYTES, shrink_pipe
from engine.shared.messages import Note, Received, Stop, Waiting
from engine.shared.snapshot import Snapshot
from tests.waiting import until

LARGE = Snapshot({"/prompt": "p" * 10 * SMALL_PIPE_BYTES}, 1)


@pytest.fixture
def link() -> Iterator[tuple[EngineLink, Connection, threading.Event]]:
    """Return a link, the engine's end of its pipe, and what the link's ``notify`` sets."""
    pipe, engine_pipe = multiprocessing.Pipe()
    shrink_pipe(pipe)
    notified = threading.Event()
    engine_link = EngineLink(pipe, notified.set)
    yield engine_link, engine_pipe, notified
    engine_pipe.close()
    engine_link.close()


def test_a_message_larger_than_the_pipe_holds_up_nobody(link: tuple[EngineLink, Connection, threading.Event]) -> None:
    engine_link, engine_pipe, notified = link
    start = time.perf_counter()
    engine_link.send(LARGE)
    engine_link.send(Stop())
    assert time.perf_counter() - start < 0.5
    assert not engine_link.can_send
    assert engine_pipe.recv().number == 1, "it arrives when the engine reads"
    assert engine_pipe.recv() == Stop()
    engine_pipe.send(Received(1))
    until(lambda: engine_link.can_send, 5, "the acknowledgement")
    assert notified.is_set()
    assert engine_link.messages() == [], "an acknowledgement is no sign of life"


def test_closing_waits_for_no_engine(link: tuple[EngineLink, Connection, threading.Event]) -> None:
    engine_link, engine_pipe, _ = link
    engine_link.send(LARGE)
    start = time.perf_counter()
    engine_link.close()  # the engine's end is open, as that of a process that cannot be killed
    assert time.perf_counter() - start < 5
    engine_link.send(LARGE)
    engine_pipe.close()
    until(lambda: engine_link.ended, 5, "the end")


def test_messages_arrive_in_order_and_the_last_ones_after_the_end(
    link: tuple[EngineLink, Connection, threading.Event],
) -> None:
    engine_link, engine_pipe, notified = link
    sent = [Waiting(), *(Note(str(number)) for number in range(50))]
    for message in sent:
        engine_pipe.send(message)
    engine_pipe.close()
    engine_link.drain()
    assert engine_link.ended
    assert notified.is_set()
    assert engine_link.has_messages
    assert engine_link.messages() == sent
    assert not engine_link.has_messages


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe of Windows takes whole messages alone")
def test_half_a_message_holds_up_nobody(link: tuple[EngineLink, Connection, threading.Event]) -> None:
    engine_link, engine_pipe, _ = link
    os.write(engine_pipe.fileno(), struct.pack("!i", 1000) + b"half")
    start = time.perf_counter()
    assert engine_link.messages() == []
    assert not engine_link.ended
    engine_link.close()
    assert time.perf_counter() - start < 5


def test_what_is_no_message_ends_the_link(
    link: tuple[EngineLink, Connection, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    engine_link, engine_pipe, _ = link
    engine_pipe.send_bytes(b"this is no pickle")
    until(lambda: engine_link.ended, 5, "the end")
    assert "no message" in caplog.text
    assert engine_link.messages() == []


def test_a_value_that_cannot_be_pickled_raises_where_it_is_sent(
    link: tuple[EngineLink, Connection, threading.Event],
) -> None:
    engine_link, _, _ = link
    with pytest.raises((TypeError, AttributeError)):
        engine_link.send(Snapshot({"/prompt": threading.Lock()}))  # type: ignore[dict-item]
    assert engine_link.can_send
