"""Mailbox: the latest frame wins, drops are counted, frames are never torn, a killed writer does no harm."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest

from engine.shared import memory
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox
from engine.shared.parameter import InvalidValue

CONTEXT = multiprocessing.get_context("spawn")


def uniform_frame(value: int, width: int = 64, height: int = 48) -> Frame:
    return Frame(np.full((height, width, 4), value % 256, np.uint8), value, 123.5, 7)


def test_the_latest_frame_wins_and_the_others_are_counted() -> None:
    mailbox = Mailbox(CONTEXT, 64)
    assert mailbox.read() is None
    for value in (1, 2, 3):
        mailbox.write(uniform_frame(value))
    frame = mailbox.read()
    assert frame is not None
    assert (frame.sequence, frame.captured_at, frame.snapshot, frame.size) == (3, 123.5, 7, (64, 48))
    assert (frame.pixels == 3).all()
    assert mailbox.dropped == 2
    assert mailbox.read() is None
    mailbox.close()


def test_a_frame_that_is_too_large_is_rejected() -> None:
    mailbox = Mailbox(CONTEXT, 32)
    with pytest.raises(ValueError, match="64x48"):
        mailbox.write(uniform_frame(1))
    mailbox.close()


def test_read_waits_no_longer_than_its_timeout() -> None:
    mailbox = Mailbox(CONTEXT, 64)
    start = time.perf_counter()
    assert mailbox.read(0.1) is None
    assert 0.09 < time.perf_counter() - start < 1.0
    mailbox.close()


class LimitedSemaphore:
    """A semaphore that counts to ``limit``, as those of macOS do to 32,767."""

    def __init__(self, limit: int) -> None:
        self._limit, self.value = limit, 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        available = self.value > 0
        self.value -= available
        return available

    def release(self) -> None:
        if self.value >= self._limit:
            raise OSError(errno.EOVERFLOW, "Value too large to be stored in data type")
        self.value += 1


def test_a_reader_that_stays_away_for_long_costs_no_wake_ups() -> None:
    mailbox = Mailbox(CONTEXT, 64)
    mailbox._wake = semaphore = LimitedSemaphore(3)
    for value in range(1, 11):
        mailbox.write(uniform_frame(value))
    assert semaphore.value == 1
    frame = mailbox.read()
    assert frame is not None
    assert frame.sequence == 10
    assert semaphore.value == 0
    mailbox.write(uniform_frame(11))
    assert semaphore.value == 1
    mailbox.close()


def _write_forever(mailbox: Mailbox) -> None:
    value = 1
    while True:
        mailbox.write(uniform_frame(value, 256, 256))
        value += 1


def test_frames_are_whole_and_the_reader_survives_a_killed_writer() -> None:
    mailbox = Mailbox(CONTEXT, 256)
    for _ in range(2):  # the second writer takes over where the first was killed
        writer = CONTEXT.Process(target=_write_forever, args=(mailbox,), daemon=True)
        writer.start()
        last, count, deadline = -1, 0, time.perf_counter() + 30
        while count < 200 and time.perf_counter() < deadline:
            frame = mailbox.read(5.0)
            assert frame is not None
            assert (frame.pixels == frame.sequence % 256).all(), "a torn frame"
            count += 1
            last = frame.sequence
        assert count == 200
        assert last > 200 or mailbox.dropped >= 0
        assert writer.pid is not None
        os.kill(writer.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        writer.join()
        while mailbox.read(0.05) is not None:
            pass
    mailbox.close()


def _echo(inbox: Mailbox, outbox: Mailbox) -> None:
    while True:
        frame = inbox.read(10)
        if frame is not None:
            outbox.write(frame)


def test_a_frame_crosses_to_another_process_and_back() -> None:
    inbox, outbox = Mailbox(CONTEXT, 64), Mailbox(CONTEXT, 64)
    process = CONTEXT.Process(target=_echo, args=(inbox, outbox), daemon=True)
    process.start()
    deadline = time.perf_counter() + 30
    frame = None
    while frame is None and time.perf_counter() < deadline:
        inbox.write(uniform_frame(99))
        frame = outbox.read(0.2)
    assert frame is not None
    assert frame.sequence == 99
    process.kill()
    process.join()
    inbox.close()
    outbox.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_the_side_of_the_slots_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(free_mib: float, *working_size: int) -> tuple[int, bool]:
        monkeypatch.setattr(memory, "measure_space", lambda: memory.Space(64 << 20, int(free_mib * 2**20)))
        return memory.choose_side(3, 16, working_size or (256, 256), 2048)  # type: ignore[arg-type]

    assert choose(4096) == (2048, False), "plenty: no page is taken before it is written"
    assert choose(256) == (2048, True)
    side, reserve = choose(64)
    assert reserve
    assert 1100 < side < 1182
    assert 3 * 16 * side**2 < 64 << 20
    assert choose(16)[0] >= 512
    for free_mib, *working_size in ((1, 256, 256), (1, 64, 64), (16, 1024, 1024)):
        with pytest.raises(InvalidValue, match="shm-size"):
            choose(free_mib, *working_size)
    monkeypatch.setattr(memory, "measure_space", lambda: None)
    assert memory.choose_side(3, 16, (256, 256), 2048) == (2048, False), "systems without /dev/shm"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_a_reserved_mailbox_takes_its_memory_at_once_and_another_when_it_is_written() -> None:
    def measure(box: Mailbox) -> int:
        return (memory.FOLDER / box._memory.name).stat().st_blocks * 512

    sparse, reserved = Mailbox(CONTEXT, 512), Mailbox(CONTEXT, 512, reserve=True)
    assert measure(sparse) < 65536
    assert measure(reserved) >= 4 * reserved.max_pixels * 4
    memory.free_abandoned_blocks()
    assert (memory.FOLDER / sparse._memory.name).exists(), "a living process holds it"
    for box in (sparse, reserved):
        name = box._memory.name
        box.close()
        assert not (memory.FOLDER / name).exists()
