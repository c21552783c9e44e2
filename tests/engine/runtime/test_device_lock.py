"""Device locks: reentrant, one thread at a time, in turn, and only where a device needs one."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch

from engine.runtime.device_lock import FairLock, device_lock, hold_device_lock, split_into_chunks
from tests.waiting import until


def test_only_mps_has_a_lock_and_each_device_one() -> None:
    assert isinstance(device_lock(torch.device("mps")), FairLock)
    assert device_lock(torch.device("mps")) is device_lock(torch.device("mps", 0))
    assert device_lock(torch.device("mps")) is not device_lock(torch.device("mps", 1))
    for name in ("cpu", "cuda", "cuda:1", "meta"):
        assert isinstance(device_lock(torch.device(name)), nullcontext)


def test_a_thread_may_enter_again_and_leaves_as_often() -> None:
    lock = FairLock()
    with lock:
        with lock:
            assert lock.is_held
        assert lock.is_held
    assert not lock.is_held


def test_one_thread_at_a_time_also_after_an_error() -> None:
    lock, inside, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                with lock, lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    assert lock.is_held
                    inside[0] -= 1
                    raise KeyError
            except KeyError:
                assert not lock.is_held

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert (most[0], inside[0]) == (1, 0)


def test_a_busy_loop_lets_a_waiting_thread_in_at_its_next_turn() -> None:
    """A plain lock is taken again before the other thread wakes up, for thousands of turns."""
    lock, turns, waiting, entered = FairLock(), [0], threading.Event(), list[int]()

    def wait_once() -> None:
        waiting.set()
        with lock:
            entered.append(turns[0])

    thread = threading.Thread(target=wait_once)
    with lock:
        thread.start()
        waiting.wait(5)
        until(lock._queue.locked, 5, "the thread queues")
    for _ in range(1000):
        with lock:
            turns[0] += 1
    thread.join(5)
    assert entered == [0]


def test_chunks_hold_all_items_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runtime.device_lock.CHUNK_BYTES", 10)
    assert list(split_into_chunks([3, 9, 1, 30, 4, 4], lambda size: size)) == [[3, 9], [1, 30], [4, 4]]
    assert list(split_into_chunks([], lambda size: size)) == []


def test_a_method_holds_the_lock_of_its_object() -> None:
    class Holder:
        def __init__(self) -> None:
            self.device_lock = FairLock()

        @hold_device_lock
        def fail(self, number: int, *, name: str) -> None:
            """Raise what it sees."""
            raise ValueError(f"{name} {number} {self.device_lock.is_held}")

    holder = Holder()
    with pytest.raises(ValueError, match="layer 3 True"):
        holder.fail(3, name="layer")
    assert not holder.device_lock.is_held
    assert Holder.fail.__doc__ == "Raise what it sees."
