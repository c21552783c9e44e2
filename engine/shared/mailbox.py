"""Mailbox: frames between two processes in a few slots of shared memory. The latest frame wins, and nothing blocks.

One process writes, one reads. A slot's version is odd while it is written (a sequence lock). So a reader notices a slot
that is half written, or overwritten while it copied, and takes the newer frame. No lock is held at any time: either
process may be killed at any instruction, and the other keeps running.
"""

from __future__ import annotations

import logging
import threading
import time
from multiprocessing.context import BaseContext
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

from engine.shared.errors import first_line
from engine.shared.frame import MAX_SIDE, Frame
from engine.shared.memory import HINT, Block, choose_side, describe, free_abandoned_blocks, measure_space
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
SLOTS = 4
_HEADER = np.dtype(
    [
        ("version", "<u8"), ("index", "<u8"), ("sequence", "<i8"), ("snapshot", "<i8"),
        ("captured_at", "<f8"), ("width", "<u4"), ("height", "<u4"),
    ]
)  # fmt: skip


class Mailboxes(NamedTuple):
    """The mailboxes of an engine process: frames of the source, frames of the second source, and output frames."""

    inbox: Mailbox
    second: Mailbox
    outbox: Mailbox

    @property
    def max_pixels(self) -> int:
        """The largest frame that fits into every mailbox, in pixels."""
        return min(box.max_pixels for box in self)

    def close(self) -> None:
        """Close every mailbox."""
        for box in self:
            box.close()


def open_mailboxes(context: BaseContext, working_size: tuple[int, int]) -> Mailboxes:
    """Create the mailboxes for frames of MAX_SIDE², or for smaller ones where shared memory is short.

    Raises InvalidValue where there is not enough even for a frame of ``working_size``.
    """
    free_abandoned_blocks()
    count = len(Mailboxes._fields)
    side, reserve = choose_side(count, SLOTS * 4, working_size, MAX_SIDE)
    if side < MAX_SIDE and (space := measure_space()) is not None:
        log.warning("%s: frames up to %dx%d; %s", describe(space), side, side, HINT)
    boxes: list[Mailbox] = []
    try:
        for _ in range(count):
            boxes.append(Mailbox(context, side, reserve))
    except OSError as error:
        for box in boxes:
            box.close()
        reason = error.strerror or first_line(error)
        raise InvalidValue(f"the shared memory for frames cannot be created ({reason}); {HINT}") from None
    return Mailboxes(*boxes)


class Mailbox:
    """A mailbox for frames of up to ``max_side``² pixels. One process creates it; pickling hands it to the other.

    ``dropped`` counts the frames that were overwritten before this process read them. ``reserve`` takes the memory for
    all slots at once. Raises OSError where there is not enough.
    """

    def __init__(self, context: BaseContext, max_side: int = MAX_SIDE, reserve: bool = False) -> None:
        self._capacity = max_side * max_side * 4
        header = 64 + SLOTS * _HEADER.itemsize
        self._wake: Any = context.Semaphore(0)
        self._block: Block | None = Block(header + SLOTS * self._capacity, reserve)
        self._memory = self._block.memory
        self._attach()
        self._latest[0] = 0
        self._slots["version"] = 0

    def _attach(self) -> None:
        buffer = self._memory.buf
        assert buffer is not None
        self._latest = np.frombuffer(buffer, "<u8", 1, 0)
        self._slots = np.frombuffer(buffer, _HEADER, SLOTS, 64)
        start = 64 + SLOTS * _HEADER.itemsize
        self._pixels = [
            np.frombuffer(buffer, np.uint8, self._capacity, start + i * self._capacity) for i in range(SLOTS)
        ]
        self._fence_lock = threading.Lock()
        self._seen = 0
        self.dropped = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self._capacity, "name": self._memory.name, "wake": self._wake}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._capacity, self._wake = state["capacity"], state["wake"]
        self._memory, self._block = SharedMemory(name=state["name"]), None
        self._attach()
        self._seen = int(self._latest[0])

    @property
    def max_pixels(self) -> int:
        """The largest frame that fits, in pixels."""
        return self._capacity // 4

    def _fence(self) -> None:
        # Two rounds of a lock order the stores around them on processors that reorder (ARM).
        for _ in range(2):
            with self._fence_lock:
                pass

    def write(self, frame: Frame) -> None:
        """Publish ``frame`` without blocking. Raises ValueError if it is larger than a slot."""
        height, width = frame.pixels.shape[:2]
        count = height * width * 4
        if count > self._capacity:
            raise ValueError(f"a frame of {width}x{height} does not fit into a mailbox slot of {self._capacity} bytes")
        index = int(self._latest[0]) + 1
        slot = self._slots[index % SLOTS]
        slot["version"] += 1 + int(slot["version"] & 1)  # odd, even if a writer died half-way
        self._fence()
        self._pixels[index % SLOTS][:count].reshape(height, width, 4)[...] = frame.pixels
        slot["index"], slot["sequence"], slot["snapshot"] = index, frame.sequence, frame.snapshot
        slot["captured_at"], slot["width"], slot["height"] = frame.captured_at, width, height
        self._fence()
        slot["version"] += 1
        self._fence()
        self._latest[0] = index
        # One wake-up is enough. Semaphores of macOS count to 32,767 and then raise: nine minutes at 60 frames a second
        # without a reader, as during a download.
        self._wake.acquire(False)
        self._wake.release()

    def read(self, timeout: float | None = 0.0) -> Frame | None:
        """Return a copy of the newest unread frame, or None after ``timeout`` seconds (None: wait forever)."""
        deadline = None if timeout is None else time.perf_counter() + timeout
        while (frame := self._read_latest()) is None:
            remaining = None if deadline is None else deadline - time.perf_counter()
            if remaining is not None and remaining <= 0:
                return None
            self._wake.acquire(timeout=remaining)
        while self._wake.acquire(False):  # wake-ups for frames that this one supersedes
            pass
        return frame

    def skip(self) -> None:
        """Ignore the frames that were written before this moment."""
        self._seen = int(self._latest[0])

    def _read_latest(self) -> Frame | None:
        for _ in range(SLOTS * 2):
            index = int(self._latest[0])
            if index == self._seen:
                return None
            self._fence()
            slot = self._slots[index % SLOTS].copy()
            count = int(slot["width"]) * int(slot["height"]) * 4
            if slot["version"] & 1 or slot["index"] != index or not 0 < count <= self._capacity:
                continue
            pixels = self._pixels[index % SLOTS][:count].copy().reshape(int(slot["height"]), int(slot["width"]), 4)
            self._fence()
            if self._slots[index % SLOTS]["version"] != slot["version"]:
                continue
            self.dropped += index - self._seen - 1
            self._seen = index
            return Frame(pixels, int(slot["sequence"]), float(slot["captured_at"]), int(slot["snapshot"]))
        return None

    def close(self) -> None:
        """Detach from the memory; the process that created the mailbox also frees it."""
        del self._latest, self._slots, self._pixels
        if self._block is not None:
            self._block.close()
        else:
            self._memory.close()
