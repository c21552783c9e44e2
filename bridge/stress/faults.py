"""Fault injection: breaks a throwaway show in each way that shows break, and reports what the audience saw.

Prints a Markdown table.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from bridge.engine_process.standby import DELAY_SECONDS_COMPILING
from bridge.errors import UserError
from bridge.osc.udp import UdpServer
from bridge.stress.breakable import BreakableCamera, BreakableSink, BreakableSource
from bridge.stress.harness import StressShow
from bridge.stress.small_pipe import shrink_pipe
from bridge.textures.camera import CameraSource
from engine.shared.fault_parameter import DEVICE_LOST, FAULT_PARAMETER, NAN, NO_FAULT, OUT_OF_MEMORY
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value

#: Breaks the show, and returns once the cause is gone.
Injection = Callable[[StressShow], None]
#: The fault that is tried ``kills`` times instead of ``tries`` times.
ENGINE_KILLED = "engine killed"
#: The faults of this name move ``FADER_PARAMETER`` at these rates.
HANGS_WHILE_MOVING, CHANGES_PER_SECOND, FADER_PARAMETER = "engine hangs while a fader moves", (2, 20, 60), "/strength"
OLD_NAMES = {
    "engine and its reserve killed": "engine and standby killed",
    "source vanishes": "source disappears",
    "source changes its size": "source changes size",
    "source of a wrong format": "source sends a wrong format",
    "receiver goes away": "receiver disconnects",
}


@dataclass(frozen=True)
class Limits:
    """The longest gap on the output, and the longest time until transformed frames are back, in seconds."""

    gap_seconds: float = 0.1
    recovery_seconds: float = 5.0


@dataclass(frozen=True)
class Outcome:
    """The longest gap and the recovery time of one try, in seconds, and the parameters that lost their value."""

    gap: float
    recovery: float
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """One way to break a show, and what the audience sees meanwhile.

    With ``engine`` the recovery time counts from the fault itself, because the show recovers alone. It may be
    ``slack`` times the limit.
    """

    name: str
    effect: str
    inject: Injection
    engine: bool = False
    slack: float = 1.0
    posix: bool = False


def find_faults(names: Iterable[str] | None) -> list[Fault]:
    """Return the faults of these names, with or without what is in brackets, or all.

    Raises UserError for a name that no fault has.
    """
    requested = {OLD_NAMES.get(name, name) for name in names or ()}
    spellings = {fault.name: {fault.name, fault.name.split(" (")[0]} for fault in FAULTS}
    if unknown := requested - set().union(*spellings.values()):
        raise UserError(f"--only takes {', '.join(spellings)}; got {unknown.pop()!r}")
    return [fault for fault in FAULTS if not requested or spellings[fault.name] & requested]


def run_faults(
    engine: EngineOptions,
    values: Mapping[str, Value],
    faults: Sequence[Fault],
    tries: int,
    kills: int,
    limits: Limits,
) -> bool:
    """Try each fault, print a row for each, and return whether every limit held."""
    print("| Fault | Audience sees | Tries | Longest gap | Live again after | Lost values |")
    print("|---|---|---|---|---|---|", flush=True)
    good = True
    with StressShow(engine, values) as test:
        for fault in faults:
            if fault.posix and sys.platform == "win32":
                continue
            count = kills if fault.name == ENGINE_KILLED else tries
            outcomes = [try_fault(test, fault) for _ in range(count)]
            gap, recovery = max(o.gap for o in outcomes), max(o.recovery for o in outcomes)
            lost = sorted({name for outcome in outcomes for name in outcome.lost})
            in_time = gap <= limits.gap_seconds and recovery <= limits.recovery_seconds * fault.slack
            good = good and in_time and not lost
            times = f"{gap * 1000:.0f} ms | {recovery:.1f} s"
            print(f"| {fault.name} | {fault.effect} | {count} | {times} | {', '.join(lost) or 'none'} |", flush=True)
    print(
        f"\ngap at most {limits.gap_seconds * 1000:.0f} ms, live again within {limits.recovery_seconds:.0f} s,"
        f" or twice that without a standby engine: {'passed' if good else 'FAILED'}"
    )
    return good


def try_fault(test: StressShow, fault: Fault) -> Outcome:
    """Inject ``fault`` once, after the show is live and a standby engine is ready."""
    supervisor = test.show.supervisor
    test.wait_until(
        lambda: supervisor.ready.is_set() and supervisor.standby.pid is not None,
        "standby engine",
        2 * DELAY_SECONDS_COMPILING,
    )
    time.sleep(random.uniform(0.0, 0.5))
    before, begin = dict(test.state.snapshot()), time.perf_counter()
    fault.inject(test)
    cause_gone = time.perf_counter()
    test.wait_until(
        lambda: supervisor.ready.is_set() and test.audience.count_transformed(cause_gone) > 2, "transformed frames"
    )
    recovery = time.perf_counter() - (begin if fault.engine else cause_gone)
    time.sleep(0.1)
    after = test.state.snapshot()
    lost = tuple(name for name, value in before.items() if after.get(name) != value)
    return Outcome(test.audience.longest_gap(begin - 0.5), recovery, lost)


def _send_signal(name: str) -> Injection:
    """Send a signal to the engine and wait for its successor."""

    def inject(test: StressShow) -> None:
        supervisor = test.show.supervisor
        starts, pid = supervisor.starts, supervisor.pid
        assert pid is not None
        os.kill(pid, getattr(signal, name, signal.SIGTERM))
        test.wait_until(lambda: supervisor.starts > starts, "new engine")

    return inject


def _hang(test: StressShow) -> None:
    """Suspend the engine, as a driver that does not come back would, and wait for its successor."""
    supervisor = test.show.supervisor
    starts, pid = supervisor.starts, supervisor.pid
    assert pid is not None
    psutil.Process(pid).suspend()
    test.wait_until(lambda: supervisor.starts > starts, "new engine")


def _hang_while_moving(rate: int) -> Injection:
    """Move a fader ``rate`` times a second, suspend the engine, and let the next one follow the last value.

    The pipe to the engine holds as little as on Windows.
    """

    def inject(test: StressShow) -> None:
        supervisor, state = test.show.supervisor, test.state
        before = state.snapshot()[FADER_PARAMETER]
        stop = threading.Event()

        def move() -> None:
            for step in itertools.count():
                if stop.wait(1 / rate):
                    return
                state.put({FADER_PARAMETER: step % 100 / 100})

        assert supervisor.process is not None
        shrink_pipe(supervisor.process.link.pipe)
        fader = threading.Thread(target=move, name="fader", daemon=True)
        fader.start()
        try:
            _hang(test)
        finally:
            stop.set()
            fader.join()
            state.put({FADER_PARAMETER: before})
        test.wait_until(
            lambda: supervisor.status is not None and supervisor.status.snapshot >= state.number, "newest values"
        )

    return inject


def _kill_both(test: StressShow) -> None:
    """Kill the standby engine, then the engine: both have to be started from nothing."""
    standby = test.show.supervisor.standby.pid
    assert standby is not None
    os.kill(standby, getattr(signal, "SIGKILL", signal.SIGTERM))
    _send_signal("SIGKILL")(test)


def _break_decoder(kind: str) -> Injection:
    """Make the decoder fail: NaN for a few frames, a lost device until the engine is replaced.

    Out of memory lasts until the engine has reverted the parameter as a change that did not fit.
    """

    def inject(test: StressShow) -> None:
        supervisor, name = test.show.supervisor, FAULT_PARAMETER.name
        errors = supervisor.errors
        test.state.put({name: kind})
        if kind == OUT_OF_MEMORY:
            test.wait_until(lambda: test.state.snapshot()[name] == NO_FAULT, "revert of what did not fit")
        else:
            test.wait_until(
                lambda: supervisor.errors > errors and (kind == NAN or not supervisor.ready.is_set()), "engine error"
            )
            test.state.put({name: NO_FAULT})

    return inject


def _break_texture(part: Callable[[StressShow], BreakableSource | BreakableSink], kind: str) -> Injection:
    """Set the ``fault`` of the source or the sink for a second."""

    def inject(test: StressShow) -> None:
        part(test).fault = kind
        time.sleep(1.0)
        part(test).fault = ""

    return inject


def _break_source(kind: str) -> Injection:
    return _break_texture(lambda test: test.source, kind)


def _break_sink(kind: str) -> Injection:
    return _break_texture(lambda test: test.sink, kind)


def _unplug_camera(test: StressShow) -> None:
    """Let the show read a camera, and unplug that for a second."""
    camera = BreakableCamera()
    test.source.camera = CameraSource("camera:0", "0", camera.open_capture)
    try:
        test.source.camera._open()
        time.sleep(1.0)
        losses = test.source.losses
        camera.unplugged = True
        time.sleep(1.0)
        camera.unplugged = False
        if test.source.losses == losses:
            raise UserError("the show did not notice that the camera was unplugged")
    finally:
        test.source.camera = None


def _fill_disk(test: StressShow) -> None:
    """Limit this process's files to one byte: writing fails as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stops = test.recording.stops
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        test.wait_until(lambda: test.recording.stops > stops, "end of the recording")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = test.recording.frames
    test.wait_until(lambda: test.recording.frames > written + 5, "new recording")


def _take_port(test: StressShow) -> None:
    """Open the show's OSC port a second time, which must fail."""
    with contextlib.suppress(OSError):
        UdpServer(test.show.osc, "127.0.0.1", test.osc.port).close()
        raise UserError("a port could be opened twice")


def _shift_clock(_test: StressShow) -> None:
    """Shift the wall clock that this process reads by an hour ahead, then two back."""
    wall_clock = time.time
    try:
        for hours in (1.0, -2.0):
            time.time = lambda shift=hours: wall_clock() + shift * 3600  # type: ignore[misc]
            time.sleep(0.5)
    finally:
        time.time = wall_clock


HELD = "the last picture, or `/fallback`"
HELD_INPUT = "the last picture, or `/fallback/source`"
OTHER_SINKS = "no effect on other sinks"
FAULTS = (
    Fault(ENGINE_KILLED, HELD, _send_signal("SIGKILL"), engine=True),
    Fault("engine and standby killed", HELD, _kill_both, engine=True, slack=2.0),
    Fault("engine hangs", HELD, _hang, engine=True),
    *(
        Fault(f"{HANGS_WHILE_MOVING} ({rate} changes/s)", HELD, _hang_while_moving(rate), engine=True)
        for rate in CHANGES_PER_SECOND
    ),
    Fault("device lost", HELD, _break_decoder(DEVICE_LOST), engine=True),
    Fault(
        "out of memory", "the last picture, until the change is reverted", _break_decoder(OUT_OF_MEMORY), engine=True
    ),
    Fault("NaN output", "the last valid picture", _break_decoder(NAN), engine=True),
    Fault("source disappears", HELD_INPUT, _break_source("gone")),
    Fault("source freezes", HELD_INPUT, _break_source("frozen")),
    Fault("source changes size", "the input, fit again", _break_source("resize")),
    Fault("source sends a wrong format", "the last picture", _break_source("format")),
    Fault("camera unplugged", HELD_INPUT, _unplug_camera),
    Fault("sink blocks", OTHER_SINKS, _break_sink("blocks")),
    Fault("receiver disconnects", OTHER_SINKS, _break_sink("gone")),
    Fault("disk full while recording", OTHER_SINKS, _fill_disk, posix=True),
    Fault("port in use", "no effect", _take_port),
    Fault("clock jumps", "no effect", _shift_clock),
)
