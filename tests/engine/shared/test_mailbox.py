"""The mailbox: latest wins, drops are counted, no torn frames, and a killed writer hurts nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox

CONTEXT = multiprocessing.get_context("spawn")


def plain(value: int, width: int = 64, height: int = 48) -> Frame:
    return Frame(np.full((height, width, 4), value % 256, np.uint8), value, 123.5, 7)


def test_the_latest_frame_wins_and_the_others_are_counted() -> None:
    box = Mailbox(CONTEXT, 64)
    assert box.read() is None
    for value in (1, 2, 3):
        box.write(plain(value))
    frame = box.read()
    assert frame is not None
    assert (frame.sequence, frame.captured_at, frame.snapshot, frame.size) == (3, 123.5, 7, (64, 48))
    assert (frame.pixels == 3).all()
    assert box.dropped == 2
    assert box.read() is None
    box.close()


def test_a_frame_that_is_too_large_is_refused() -> None:
    box = Mailbox(CONTEXT, 32)
    with pytest.raises(ValueError, match="64x48"):
        box.write(plain(1))
    box.close()


def test_read_waits_no_longer_than_asked() -> None:
    box = Mailbox(CONTEXT, 64)
    start = time.monotonic()
    assert box.read(0.1) is None
    assert 0.09 < time.monotonic() - start < 1.0
    box.close()


def _write_for_ever(box: Mailbox) -> None:
    value = 1
    while True:
        box.write(plain(value, 256, 256))
        value += 1


def test_frames_are_whole_and_a_killed_writer_is_survived() -> None:
    box = Mailbox(CONTEXT, 256)
    for _ in range(2):  # the second writer takes over where the first was killed
        writer = CONTEXT.Process(target=_write_for_ever, args=(box,), daemon=True)
        writer.start()
        last, count, limit = -1, 0, time.monotonic() + 30
        while count < 200 and time.monotonic() < limit:
            frame = box.read(5.0)
            assert frame is not None
            assert (frame.pixels == frame.sequence % 256).all(), "a torn frame"
            count += 1
            last = frame.sequence
        assert count == 200
        assert last > 200 or box.dropped >= 0
        assert writer.pid is not None
        os.kill(writer.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        writer.join()
        while box.read(0.05) is not None:
            pass
    box.close()


def _answer(box: Mailbox, back: Mailbox) -> None:
    while True:
        frame = box.read(10)
        if frame is not None:
            back.write(frame)


def test_a_frame_crosses_and_comes_back() -> None:
    there, back = Mailbox(CONTEXT, 64), Mailbox(CONTEXT, 64)
    process = CONTEXT.Process(target=_answer, args=(there, back), daemon=True)
    process.start()
    limit = time.monotonic() + 30
    frame = None
    while frame is None and time.monotonic() < limit:
        there.write(plain(99))
        frame = back.read(0.2)
    assert frame is not None
    assert frame.sequence == 99
    process.kill()
    process.join()
    there.close()
    back.close()
