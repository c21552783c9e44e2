"""The presenter: which picture leaves, when, and how it is finished."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.control.state import State
from bridge.show.presenter import REPEAT_SECONDS, Presenter
from bridge.show.sink_thread import SinkThread
from bridge.textures import Sink, open_source
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox
from engine.shared.parameter import Value
from tests.waiting import until

WIDTH, HEIGHT = 64, 48


def grey(level: int, snapshot: int = 0, sequence: int = 0) -> Frame:
    return Frame(np.full((HEIGHT, WIDTH, 4), (level, level, level, 255), np.uint8), sequence, snapshot=snapshot)


class RecordingSink(Sink):
    """Records frames and the monotonic times of their arrival."""

    def __init__(self) -> None:
        super().__init__("recording:")
        self.frames_written: list[Frame] = []
        self.times: list[float] = []

    def _write(self, frame: Frame) -> None:
        self.times.append(time.perf_counter())
        self.frames_written.append(frame)


class Output:
    """A running presenter with two sinks. ``input`` and ``silence`` stand for the source and the engine."""

    def __init__(self) -> None:
        self.state = State()
        self.outbox = Mailbox(multiprocessing.get_context("spawn"), 128)
        self.sinks = [RecordingSink(), RecordingSink()]
        self.threads = [SinkThread(sink) for sink in self.sinks]
        self.input: Frame | None = None
        self.silence = 0.0
        self.presenter = Presenter(
            self.state,
            self.outbox,
            self.threads,
            lambda: self.input,
            lambda: self.silence,
            lambda snapshot: (WIDTH, HEIGHT),
        )
        for thread in (*self.threads, self.presenter):
            thread.start()

    def put(self, **values: Value) -> None:
        self.state.put({"/" + name.replace("_", "/"): value for name, value in values.items()})

    def mark(self) -> int:
        """Return the number of frames so far, all of them rendered before this moment's settings."""
        return len(self.sinks[0].frames_written)

    @property
    def newest(self) -> Frame | None:
        written = self.sinks[0].frames_written
        return written[-1] if written else None

    @property
    def level(self) -> float:
        """The mean level of the newest picture, -1 before the first one."""
        return float(self.newest.pixels[..., :3].mean()) if self.newest is not None else -1.0

    def wait_for_level(self, level: int) -> None:
        until(lambda: abs(self.level - level) <= 1, 10, f"a level of {level}")

    def close(self) -> None:
        self.presenter.close()
        for thread in self.threads:
            thread.close()
        self.outbox.close()


@pytest.fixture
def output() -> Iterator[Output]:
    running = Output()
    yield running
    running.close()


def test_the_input_is_passed_through_until_the_engines_first_frame(output: Output) -> None:
    with open_source("pattern:bars?size=128x64") as source:
        frame = source.read(5.0)
    assert frame is not None
    output.input = frame
    until(lambda: output.mark() > 3, 10, "the input at the sinks")
    passed = output.newest
    assert passed is not None
    assert passed.size == (WIDTH, HEIGHT)
    assert passed.snapshot == 0
    middle = frame.pixels[:, 128 // 6 : 128 * 5 // 6].mean((0, 1))  # what a crop from 2:1 to 4:3 leaves
    assert np.abs(passed.pixels.mean((0, 1)) - middle).max() < 6
    assert output.presenter.first_frame_at is None
    assert {written.sequence for written in output.sinks[0].frames_written} == {frame.sequence}, "nothing before it"

    before = time.perf_counter()
    output.outbox.write(grey(200, snapshot=7, sequence=3))
    output.wait_for_level(200)
    transformed = output.newest
    assert transformed is not None
    assert (transformed.snapshot, transformed.sequence) == (7, 3)
    assert output.presenter.first_frame_at is not None
    assert output.presenter.first_frame_at >= before
    assert output.presenter.meter.frames == 1
    assert output.presenter.output is not None
    until(lambda: output.sinks[1].frames_written[-1].snapshot == 7, 5, "the frame at the second sink")


def test_bypass_shows_the_input_and_returns_to_the_picture(output: Output) -> None:
    output.input = grey(40)
    output.outbox.write(grey(200, snapshot=1))
    output.wait_for_level(200)
    output.put(bypass=True)
    output.wait_for_level(40)
    output.put(bypass=False)
    output.wait_for_level(200)


def test_a_frozen_picture_stays_until_the_first_frame_after_it(output: Output) -> None:
    output.outbox.write(grey(100, snapshot=1))
    output.wait_for_level(100)
    output.put(freeze=True)
    sent = output.mark()
    until(lambda: output.mark() > sent + 1, 5, "a repeat of the frozen picture")
    output.outbox.write(grey(200, snapshot=2))
    until(lambda: output.presenter.meter.frames == 2, 5, "a count of the frame that is not shown")
    sent = output.mark()
    until(lambda: output.mark() > sent + 2, 5, "repeats of the frozen picture")
    assert output.level == 100
    output.put(freeze=False)
    sent = output.mark()
    until(lambda: output.mark() > sent + 2, 5, "repeats after the freeze")
    assert output.level == 100, "the frame that came meanwhile is not shown late"
    output.outbox.write(grey(150, snapshot=3))
    output.wait_for_level(150)
    assert not any(frame.snapshot == 2 for frame in output.sinks[0].frames_written)


def test_the_last_picture_is_repeated(output: Output) -> None:
    output.outbox.write(grey(100, snapshot=1))
    output.wait_for_level(100)
    until(lambda: output.mark() >= 6, 10, "repeats")
    pauses = [later - earlier for earlier, later in itertools.pairwise(output.sinks[0].times)]
    assert float(np.median(pauses)) == pytest.approx(REPEAT_SECONDS, rel=0.5)


@pytest.mark.parametrize("rate", [10, 40])
def test_a_steady_rate_is_held(output: Output, rate: int) -> None:
    output.put(output_rate=rate, output_between="none")
    output.outbox.write(grey(100, snapshot=1))
    output.wait_for_level(100)
    start, first = time.perf_counter(), output.mark()
    until(lambda: output.mark() >= first + rate, 10, "the frames of a second")
    seconds = time.perf_counter() - start
    assert seconds == pytest.approx(1.0, abs=0.3)


def test_a_steady_rate_shows_pictures_between_frames(output: Output) -> None:
    """The engine's frames have even levels, 25 a second; odd ones lie between two of them."""
    output.put(output_rate=60, output_between="blend")
    with open_source("pattern:still?size=16x16&fps=25") as clock:
        for level in range(0, 250, 2):
            clock.read(5.0)
            output.outbox.write(grey(level, snapshot=1))
    output.wait_for_level(248)
    levels = [int(frame.pixels[0, 0, 0]) for frame in output.sinks[0].frames_written]
    assert levels == sorted(levels)
    assert sum(level % 2 for level in levels) > 10


def test_size_master_and_blackout_are_applied_to_the_picture(output: Output) -> None:
    output.input = grey(80)
    output.put(output_size="32x16")
    until(lambda: output.newest is not None and output.newest.size == (32, 16), 5, "the input at the output size")
    output.outbox.write(grey(200, snapshot=1))
    output.wait_for_level(200)
    assert output.newest is not None
    assert output.newest.size == (32, 16)
    for values, level in (({"master": 0.5}, 100), ({"blackout": True}, 0), ({"blackout": False, "master": 1.0}, 200)):
        output.put(**values)
        output.wait_for_level(level)
        assert (output.newest.pixels[..., 3] == 255).all()
    output.put(output_size="")
    until(lambda: output.newest is not None and output.newest.size == (WIDTH, HEIGHT), 5, "the working size")


def test_the_fallback_fades_in_while_the_engine_is_silent_and_out_again(output: Output) -> None:
    output.put(fallback="black")
    output.outbox.write(grey(200, snapshot=1))
    output.wait_for_level(200)
    sent = output.mark()
    output.silence = 60.0
    output.wait_for_level(0)
    levels = [int(frame.pixels[0, 0, 0]) for frame in output.sinks[0].frames_written[sent:]]
    assert levels == sorted(levels, reverse=True)
    assert any(0 < level < 200 for level in levels), "a fade, not a cut"
    output.silence = 0.0
    output.wait_for_level(200)


def test_the_fallback_of_the_source_is_shown_while_the_input_is_silent(output: Output) -> None:
    output.put(fallback_source="black")
    output.input = Frame(grey(80).pixels, captured_at=time.perf_counter() - 60.0)
    until(lambda: output.level == 80, 5, "the input, which has no fallback before the first frame")
    output.outbox.write(grey(200, snapshot=1))
    output.wait_for_level(0)
    output.input = grey(80)
    output.wait_for_level(200)


def test_an_error_on_some_pictures_does_not_end_the_output(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[None] = []

    def fail() -> Frame | None:
        if len(raised) < 3:
            raised.append(None)
            raise RuntimeError("this picture fails")
        return output.input

    monkeypatch.setattr(output.presenter, "_newest_input", fail)
    output.input = Frame(np.full((HEIGHT, WIDTH, 4), 90, np.uint8))
    until(lambda: len(raised) == 3, 5, "the errors")
    before = output.mark()
    until(lambda: output.mark() > before + 3, 5, "pictures after them")
