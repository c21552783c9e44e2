"""``phosphene faults``: a show of its own, broken in every way that shows break; what the audience saw of it, as a table."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from unittest import mock

from bridge.commands.options import engine_options
from bridge.engine_process.supervisor import SPARE_BUSY
from bridge.errors import UserError
from bridge.osc.udp import UdpServer
from bridge.stress.harness import BreakableSource, Capture, StressShow, StubbornSink
from bridge.textures.camera import CameraSource
from engine.shared.parameter import Value

KIND = "/hook/poison/kind"
NAN, MEMORY, DEVICE = 1, 2, 3


@dataclass(frozen=True)
class Try:
    """What one try did: the longest gap on the output, seconds until it was live again, and the names of values that were lost."""

    gap: float
    back: float
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """A way to break a show, and what the audience sees meanwhile. ``engine``: what heals it is the engine's own work, and may take
    ``slack`` times as long as is passed.
    """

    name: str
    seen: str
    broken: Callable[[StressShow], contextlib.AbstractContextManager[None]]
    engine: bool = False
    slack: float = 1.0
    posix: bool = False


def tried(on: StressShow, fault: Fault) -> Try:
    """One try of ``fault``, begun when all is well and an engine is in reserve."""
    supervisor = on.show.supervisor
    on.until(
        lambda: supervisor.ready.is_set() and supervisor.reserve is not None, "an engine in reserve", 2 * SPARE_BUSY
    )
    time.sleep(random.uniform(0.0, 0.5))
    before, begun = dict(on.state.snapshot()), time.monotonic()
    with fault.broken(on):
        pass
    mended = time.monotonic()
    on.until(lambda: supervisor.ready.is_set() and on.audience.fresh(mended) > 2, "live pictures")
    back = time.monotonic() - (begun if fault.engine else mended)
    time.sleep(0.1)
    now = on.state.snapshot()
    lost = tuple(name for name, value in before.items() if now.get(name) != value)
    return Try(on.audience.gap(begun - 0.5), back, lost)


def _signalled(name: str) -> Callable[[StressShow], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def broken(on: StressShow) -> Iterator[None]:
        supervisor = on.show.supervisor
        starts, pid = supervisor.starts, supervisor.pid
        assert pid is not None
        os.kill(pid, getattr(signal, name, signal.SIGTERM))
        on.until(lambda: supervisor.starts > starts, "another engine")
        yield

    return broken


def _poisoned(kind: int) -> Callable[[StressShow], contextlib.AbstractContextManager[None]]:
    """NaN until a few frames are lost, memory until the wish is taken back, a lost device until the engine is another."""

    @contextlib.contextmanager
    def broken(on: StressShow) -> Iterator[None]:
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


def _awry(what: str, way: str) -> Callable[[StressShow], contextlib.AbstractContextManager[None]]:
    """The rehearsal's source or its sink goes wrong for a second."""

    @contextlib.contextmanager
    def broken(on: StressShow) -> Iterator[None]:
        part: BreakableSource | StubbornSink = getattr(on, what)
        part.way = way
        time.sleep(1.0)
        part.way = ""
        yield

    return broken


@contextlib.contextmanager
def _camera_unplugged(on: StressShow) -> Iterator[None]:
    """The show sees a camera, which is away for a second."""
    camera = CameraSource("camera:0", "0")
    with mock.patch("bridge.textures.camera.cv2.VideoCapture", Capture), mock.patch.object(on.source, "camera", camera):
        camera._open()
        time.sleep(1.0)
        with mock.patch.object(Capture, "unplugged", True):
            losses = on.source.losses
            time.sleep(1.0)
        if on.source.losses == losses:
            raise UserError("the camera was not missed")
        yield


@contextlib.contextmanager
def _disk_full(on: StressShow) -> Iterator[None]:
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
def _port_in_use(on: StressShow) -> Iterator[None]:
    with contextlib.suppress(OSError):
        UdpServer(on.show.osc, "127.0.0.1", on.osc.port).close()
        raise UserError("a port could be opened twice")
    yield


@contextlib.contextmanager
def _clock_jumps(on: StressShow) -> Iterator[None]:
    true = time.time
    for hours in (1.0, -2.0):
        with mock.patch("time.time", lambda shift=hours: true() + shift * 3600):
            time.sleep(0.5)
    yield


@contextlib.contextmanager
def _cut(on: StressShow) -> Iterator[None]:
    """The spare goes first, then the engine: both have to be made anew."""
    reserve = on.show.supervisor.reserve
    assert reserve is not None
    os.kill(reserve, getattr(signal, "SIGKILL", signal.SIGTERM))
    with _signalled("SIGKILL")(on):
        yield


FAULTS = (
    Fault("engine killed", "the last picture, or what `/fallback` says", _signalled("SIGKILL"), engine=True),
    Fault("engine and its reserve killed", "the same", _cut, engine=True, slack=2.0),
    Fault("engine hangs", "the same", _signalled("SIGSTOP"), engine=True, posix=True),
    Fault("device lost", "the same", _poisoned(DEVICE), engine=True),
    Fault("out of memory", "the last picture, until what did not fit is taken back", _poisoned(MEMORY), engine=True),
    Fault("NaN output", "the last good picture", _poisoned(NAN), engine=True),
    Fault("source vanishes", "the last picture, or what `/fallback/source` says", _awry("source", "gone")),
    Fault("source freezes", "the same", _awry("source", "frozen")),
    Fault("source changes its size", "the input, fitted anew", _awry("source", "resized")),
    Fault("source of a wrong format", "the last picture", _awry("source", "format")),
    Fault("camera unplugged", "the last picture, or what `/fallback/source` says", _camera_unplugged),
    Fault("sink blocks", "nothing of it on the other sinks", _awry("stubborn", "blocks")),
    Fault("receiver goes away", "nothing of it on the other sinks", _awry("stubborn", "gone")),
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
    print("| Fault | What the audience sees | Tries | Longest gap | Live again after | Values lost |")
    print("|---|---|---|---|---|---|", flush=True)
    good = True
    with StressShow(engine_options(options), values) as rehearsal:
        for fault in wanted:
            if fault.posix and sys.platform == "win32":
                continue
            tries = [
                tried(rehearsal, fault)
                for _ in range(options.kills if fault.name == "engine killed" else options.tries)
            ]
            gap, back = max(t.gap for t in tries), max(t.back for t in tries)
            lost = sorted({name for t in tries for name in t.lost})
            good = good and gap <= options.gap / 1000 and back <= options.back * fault.slack and not lost
            print(
                f"| {fault.name} | {fault.seen} | {len(tries)} | {gap * 1000:.0f} ms | {back:.1f} s | {', '.join(lost) or 'none'} |",
                flush=True,
            )
    bounds = f"longest gap {options.gap:.0f} ms, live again within {options.back:.0f} s, twice that where the reserve dies too"
    print(f"\n{bounds}: {'held' if good else 'missed'}")
    return 0 if good else 1
