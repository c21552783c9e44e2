"""``phosphene faults``: a show of its own, broken in every way that shows break; what the audience saw of it, as a table."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from bridge.cli import UserError, engine_options
from bridge.control.osc_udp import UdpServer
from bridge.control.state import State
from bridge.hooks import declare_all
from bridge.show import Show
from bridge.textures import Sink, Source
from bridge.textures.base import Lost, Rate
from bridge.textures.file import FileSink
from bridge.textures.pattern import draw
from engine.mailbox import Frame, Pixels
from engine.parameters import Options, Value

#: An effect that makes the engine fail as devices and models do. It is read before the model is made, and stands in for its decoder.
POISON = """
import torch
from engine.models.autoencoders import Codec

PARAMETERS = {"kind": (0, 0, 3, "1 gives NaN, 2 is out of memory, 3 loses the device")}
kind, decode = 0, Codec.decode

def poisoned(self, latents):
    if kind == 1:
        return decode(self, latents) * float("nan")
    if kind == 2:
        raise torch.OutOfMemoryError("out of memory: 2.00 GiB were to be allocated")
    if kind == 3:
        raise RuntimeError("CUDA error: unspecified launch failure")
    return decode(self, latents)

def latent(latents, values, seconds):
    global kind
    kind = int(values["kind"])
    return latents

Codec.decode = poisoned
"""
KIND = "/hook/poison/kind"
NAN, MEMORY, DEVICE = 1, 2, 3
#: Seconds that anything may take before a try counts as failed.
LONGEST = 60.0


class Breakable(Source):
    """A pattern that vanishes, stands still, changes its size or its format at will."""

    def __init__(self) -> None:
        super().__init__("breakable:")
        self.way = ""
        self._rate = Rate(30.0)

    def _open(self) -> None:
        if self.way == "gone":
            raise Lost("it is away")

    def _read(self, timeout: float) -> Pixels | None:
        if self.way == "gone":
            raise Lost("it went away")
        if not self._rate.wait(timeout) or self.way == "frozen":
            time.sleep(0.01)
            return None
        width, height = (256, 256) if self.way != "resized" else (random.randrange(1, 900), random.randrange(1, 900))
        picture = draw("plasma", max(8, width), max(8, height), time.monotonic())[:height, :width]
        if self.way == "format":
            wrong = (picture[..., :3], picture.astype(np.float32) / 255, picture[..., 0], picture[:0], np.zeros((4, 4, 4), np.uint16))
            return random.choice(wrong)  # type: ignore[return-value]
        return picture


class Watch(Sink):
    """The audience: when a picture came, of which input, made with which snapshot, and how long it took in seconds."""

    def __init__(self) -> None:
        super().__init__("audience:")
        self.seen: deque[tuple[float, int, int, float]] = deque(maxlen=100_000)

    def _write(self, frame: Frame) -> None:
        now = time.monotonic()
        self.seen.append((now, frame.sequence, frame.snapshot, now - frame.captured_at))

    def gap(self, since: float) -> float:
        """The longest time between two pictures from ``since`` until now, in seconds."""
        moments = [moment for moment, *_ in list(self.seen) if moment >= since]
        return float(np.diff([*moments, time.monotonic()]).max()) if moments else time.monotonic() - since

    def fresh(self, since: float) -> int:
        """Transformed pictures of different inputs since then."""
        return len({sequence for moment, sequence, snapshot, _ in list(self.seen) if moment >= since and snapshot > 0})


class Stubborn(Sink):
    """A sink whose other side does not take anything, or is not there any more."""

    def __init__(self) -> None:
        super().__init__("stubborn:")
        self.way = ""

    def _write(self, frame: Frame) -> None:
        while self.way == "blocks":
            time.sleep(0.01)
        if self.way == "gone":
            raise OSError("the receiver went away")


@dataclass(frozen=True)
class Try:
    """What one try did: the longest gap on the output, seconds until it was live again, and the names of values that were lost."""

    gap: float
    back: float
    lost: tuple[str, ...]


class Rehearsal:
    """A show on the built-in model, with a source, a recording and a sink that can be broken. A context manager."""

    def __init__(self, options: Options, values: Mapping[str, Value], recording: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="phosphene-faults-")
        folder = Path(self._folder.name)
        (folder / "hooks").mkdir()
        (folder / "hooks" / "poison.py").write_text(POISON, encoding="utf-8")
        declare_all(str(folder / "hooks"))
        own: dict[str, Value] = {"/prompt": "neon tunnel", "/seed": 7}
        self.state = State(own | dict(values))
        self.source, self.audience, self.stubborn = Breakable(), Watch(), Stubborn()
        self.recording = FileSink("file:", str(folder / "show.mp4"))
        sinks: list[Sink] = [self.audience, self.stubborn, self.recording] if recording else [self.audience]
        engine = Options(options.device, options.offline, hooks=str(folder / "hooks"), accelerate=options.accelerate)
        self.show = Show(self.state, self.source.open(), sinks, engine)
        self.osc = UdpServer(self.show.osc, "127.0.0.1", 0)

    def __enter__(self) -> Rehearsal:
        self.show.open()
        self.until(lambda: self.audience.fresh(0.0) > 5, "the first pictures")
        return self

    def __exit__(self, *_: object) -> None:
        self.source.way = self.stubborn.way = ""
        self.osc.close()
        self.show.close()
        self._folder.cleanup()

    def until(self, condition: Callable[[], object], what: str, longest: float = LONGEST) -> None:
        """Waits. Raises UserError where it takes too long."""
        end = time.monotonic() + longest
        while not condition():
            if time.monotonic() > end:
                raise UserError(f"{what} did not come within {longest:.0f} s; the engine said last: {self.show.supervisor.last_error}")
            time.sleep(0.005)

    def tried(self, fault: Fault) -> Try:
        """One try of ``fault``, begun when all is well and an engine is in reserve."""
        supervisor = self.show.supervisor
        self.until(lambda: supervisor.ready.is_set() and supervisor.reserve is not None, "an engine in reserve")
        time.sleep(random.uniform(0.0, 0.5))
        before, begun = dict(self.state.snapshot()), time.monotonic()
        with fault.broken(self):
            pass
        mended = time.monotonic()
        self.until(lambda: supervisor.ready.is_set() and self.audience.fresh(mended) > 2, "live pictures")
        back = time.monotonic() - (begun if fault.engine else mended)
        time.sleep(0.1)
        now = self.state.snapshot()
        lost = tuple(name for name, value in before.items() if now.get(name) != value)
        return Try(self.audience.gap(begun - 0.5), back, lost)


@dataclass(frozen=True)
class Fault:
    """A way to break a show, and what the audience sees meanwhile. ``engine``: what heals it is the engine's own work."""

    name: str
    seen: str
    broken: Callable[[Rehearsal], contextlib.AbstractContextManager[None]]
    engine: bool = False
    posix: bool = False


def _signalled(name: str) -> Callable[[Rehearsal], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def broken(on: Rehearsal) -> Iterator[None]:
        supervisor = on.show.supervisor
        starts, pid = supervisor.starts, supervisor.pid
        assert pid is not None
        os.kill(pid, getattr(signal, name, signal.SIGTERM))
        on.until(lambda: supervisor.starts > starts, "another engine")
        yield

    return broken


def _poisoned(kind: int) -> Callable[[Rehearsal], contextlib.AbstractContextManager[None]]:
    """NaN until a few frames are lost, memory until the wish is taken back, a lost device until the engine is another."""

    @contextlib.contextmanager
    def broken(on: Rehearsal) -> Iterator[None]:
        supervisor = on.show.supervisor
        errors = supervisor.errors
        on.state.put({KIND: float(kind)})
        if kind == MEMORY:
            on.until(lambda: on.state.snapshot()[KIND] == 0.0, "the end of what did not fit")
        else:
            on.until(lambda: supervisor.errors > errors and (kind == NAN or not supervisor.ready.is_set()), "the fault")
            on.state.put({KIND: 0.0})
        yield

    return broken


def _source(way: str) -> Callable[[Rehearsal], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def broken(on: Rehearsal) -> Iterator[None]:
        on.source.way = way
        time.sleep(1.0)
        on.source.way = ""
        yield

    return broken


def _sink(way: str) -> Callable[[Rehearsal], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def broken(on: Rehearsal) -> Iterator[None]:
        on.stubborn.way = way
        time.sleep(1.0)
        on.stubborn.way = ""
        yield

    return broken


@contextlib.contextmanager
def _disk_full(on: Rehearsal) -> Iterator[None]:
    """No file of this process may grow: writing fails as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stops = on.recording.stops
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        on.until(lambda: on.recording.stops > stops, "the end of the recording")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = on.recording.frames
    on.until(lambda: on.recording.frames > written + 5, "another recording")
    yield


@contextlib.contextmanager
def _port_in_use(on: Rehearsal) -> Iterator[None]:
    with contextlib.suppress(OSError):
        UdpServer(on.show.osc, "127.0.0.1", on.osc.port).close()
        raise UserError("a port could be opened twice")
    yield


@contextlib.contextmanager
def _clock_jumps(on: Rehearsal) -> Iterator[None]:
    true = time.time
    for hours in (1.0, -2.0):
        with mock.patch("time.time", lambda shift=hours: true() + shift * 3600):
            time.sleep(0.5)
    yield


@contextlib.contextmanager
def _cut(on: Rehearsal) -> Iterator[None]:
    """The spare goes first, then the engine: both have to be made anew."""
    reserve = on.show.supervisor.reserve
    assert reserve is not None
    os.kill(reserve, getattr(signal, "SIGKILL", signal.SIGTERM))
    with _signalled("SIGKILL")(on):
        yield


FAULTS = (
    Fault("engine killed", "the last picture, or what `/fallback` says", _signalled("SIGKILL"), engine=True),
    Fault("engine and its reserve killed", "the same", _cut, engine=True),
    Fault("engine hangs", "the same", _signalled("SIGSTOP"), engine=True, posix=True),
    Fault("device lost", "the same", _poisoned(DEVICE), engine=True),
    Fault("out of memory", "the last picture, until what did not fit is taken back", _poisoned(MEMORY), engine=True),
    Fault("NaN output", "the last good picture", _poisoned(NAN), engine=True),
    Fault("source vanishes", "the last picture, or what `/fallback/source` says", _source("gone")),
    Fault("source freezes", "the same", _source("frozen")),
    Fault("source changes its size", "the input, fitted anew", _source("resized")),
    Fault("source of a wrong format", "the last picture", _source("format")),
    Fault("sink blocks", "nothing of it on the other sinks", _sink("blocks")),
    Fault("receiver goes away", "nothing of it on the other sinks", _sink("gone")),
    Fault("disk full while recording", "nothing of it on the other sinks", _disk_full, posix=True),
    Fault("port in use", "nothing", _port_in_use),
    Fault("clock jumps", "nothing", _clock_jumps),
)


def faults(options: argparse.Namespace, values: Mapping[str, Value]) -> int:
    """Tries each fault and prints the table; 1 where a value was lost or a bound was missed."""
    wanted = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    unknown = set(options.only or ()) - {fault.name for fault in FAULTS}
    if unknown:
        raise UserError(f"--only takes {', '.join(fault.name for fault in FAULTS)}; got {unknown.pop()!r}")
    print(
        "| Fault | What the audience sees | Tries | Longest gap | Live again after | Values lost |\n|---|---|---|---|---|---|", flush=True
    )
    good = True
    with Rehearsal(engine_options(options), values) as rehearsal:
        for fault in wanted:
            if fault.posix and sys.platform == "win32":
                continue
            tries = [rehearsal.tried(fault) for _ in range(options.kills if fault.name == "engine killed" else options.tries)]
            gap, back = max(t.gap for t in tries), max(t.back for t in tries)
            lost = sorted({name for t in tries for name in t.lost})
            good = good and gap <= options.gap / 1000 and back <= options.back and not lost
            print(
                f"| {fault.name} | {fault.seen} | {len(tries)} | {gap * 1000:.0f} ms | {back:.1f} s | {', '.join(lost) or 'none'} |",
                flush=True,
            )
    print(f"\nlongest gap {options.gap:.0f} ms, live again within {options.back:.0f} s: {'held' if good else 'missed'}")
    return 0 if good else 1
