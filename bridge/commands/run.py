"""``phosphene run``: one show, its OSC ports, its panel and its status line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bridge import logs, release
from bridge.commands.options import engine_options, preset_folders
from bridge.control.hook_parameters import HookWatch
from bridge.control.state import State
from bridge.errors import UserError
from bridge.logs import Log
from bridge.network.access import AccessPolicy, confine_files
from bridge.network.discovery import Announcement, outside_address
from bridge.osc.tcp import TcpServer
from bridge.osc.udp import UdpServer
from bridge.panel.server import PanelServer
from bridge.performance.session import Session, default_path, recover
from bridge.show.show import Show
from bridge.textures import default_sinks, default_source, open_sink, open_source
from engine.shared.parameter import Value
from engine.shared.table import ROOT

log = logging.getLogger(__name__)
#: Seconds between two lines of the log that say how it goes.
NOTED = 60.0


def run(options: argparse.Namespace, values: Mapping[str, Value]) -> int:
    """Runs until Ctrl-C, a signal, ``--seconds``, or the engine's refusal to start. Returns the exit code."""
    started = time.monotonic()
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    try:
        doors = AccessPolicy(options.host, options.allow or (), options.token or "")
    except ValueError as error:
        raise UserError(f"--allow takes networks such as 192.168.1.0/24: {error}") from None
    if (kept := log_of(options)) is not None:
        logging.getLogger().addHandler(kept)
        log.info(
            "phosphene %s starts",
            release() or "from a checkout",
            extra={"facts": {"pid": os.getpid(), "system": platform.platform()}},
        )
    journal_path = journal_of(options)
    before = recover(journal_path) if journal_path is not None and not options.fresh else None
    state = State(dict(values) | dict(before.values) if before else values)
    source = open_source(options.source or default_source())
    sinks = [open_sink(url) for url in options.sink or default_sinks()]
    second = open_source(options.control) if options.control else None
    show = Show(
        state,
        source,
        sinks,
        engine_options(options),
        second,
        preset_folders(options),
        options.desk or (),
        not options.no_spare,
    )
    if doors.exposed:
        state.confine = confine_files(
            [*(Path(folder) for folder in options.files or ()), *show.conductor.library.folders]
        )
    try:
        osc, tcp = _osc(show, options, doors)
        others = outside(show, options)
        panel = _listening(
            "--http-port",
            options.http_port,
            lambda: PanelServer(show, options.host, options.http_port, osc.port, doors),
        )
    except UserError:
        show.close()
        raise
    page = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{panel.port}/"
    outer = (
        f"http://{outside_address() if options.host == '0.0.0.0' else options.host}:{panel.port}/?token={doors.token}"
    )
    announcement = Announcement(options.host, osc.port, panel.port)
    if before is not None:
        show.conductor.player.stand(before.cues)
        cue = f", cue {before.cues['cue']}" if before.cues.get("cue") else ""
        say(f"resumed  {len(before.values)} values that were set before the crash{cue}; --fresh begins anew")
    journal = Session(state, journal_path, show.conductor.player.standing, before) if journal_path is not None else None
    say(f"source   {source.url}")
    if second is not None:
        say(f"control  {second.url}")
    say(f"sinks    {', '.join(feed.sink.url for feed in show.feeds)}")
    say(f"OSC      udp {options.host}:{osc.port} and tcp, addresses {ROOT}/…")
    say(f"panel    {page}")
    if doors.exposed:
        say(f"outside  {outer}, for {', '.join(str(network) for network in doors.networks)}")
    show.open()
    if options.open and can_open_pages():
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
    watch = HookWatch(options.hooks, state) if options.hooks else None
    line, orderly, noted = StatusLine(), False, started + NOTED
    try:
        while not stop.wait(0.1):
            if show.supervisor.refused:
                raise UserError(
                    show.supervisor.refused
                    + ("; --fresh starts without what was resumed" if before is not None else "")
                )
            if show.first_frame_at is not None and not line.first_told:
                line.first(show.first_frame_at - started)
            line.show(show)
            if time.monotonic() >= noted:
                noted += NOTED
                log.info("running", extra={"facts": facts(show)})
            if options.seconds is not None and time.monotonic() - started >= options.seconds:
                break
        orderly = True
        log.info("phosphene ends", extra={"facts": facts(show)})
    finally:
        if watch is not None:
            watch.close()
        line.end(show)
        if journal is not None:
            journal.close(orderly)
        if kept is not None:
            logging.getLogger().removeHandler(kept)
            kept.close()
        announcement.close()
        panel.close()
        osc.close()
        tcp.close()
        for other in others:
            other.close()
        show.close()
    return 0


def log_of(options: argparse.Namespace) -> Log | None:
    """The log on disk; None for none. Raises UserError."""
    if options.log == "none":
        return None
    try:
        return Log(Path(options.log).expanduser() if options.log else logs.default_path(options.osc_port))
    except OSError as error:
        if options.log:
            raise UserError(f"--log {options.log}: {error.strerror}") from None
        return None  # a system without such a folder


def journal_of(options: argparse.Namespace) -> Path | None:
    """Where the journal lies; None for none."""
    if options.journal:
        return None if options.journal == "none" else Path(options.journal).expanduser()
    return default_path(options.osc_port)


def outside(show: Show, options: argparse.Namespace) -> list[Any]:
    """MIDI, DMX, Ableton Link and sound, where they are asked for. Raises UserError."""
    opened: list[Any] = []
    try:
        if options.midi:
            from bridge.control.midi import Midi, MidiInput

            opened.append(MidiInput(Midi(show.desks, show.conductor.tempo), options.midi))
        if options.link:
            from bridge.control.ableton_link import LinkClock

            opened.append(LinkClock(show.state, show.conductor.tempo))
        if options.audio:
            from bridge.control.audio import AudioInput

            opened.append(AudioInput(show.state, options.audio))
        if options.artnet or options.sacn:
            from bridge.control.dmx import ArtNet, Dmx, Sacn

            dmx = Dmx(show.desks)
            if options.artnet:
                opened.append(ArtNet(dmx, options.host))
            if options.sacn:
                opened.append(Sacn(dmx, options.sacn, options.host))
    except OSError as error:
        for each in opened:
            each.close()
        raise UserError(str(error)) from None
    return opened


def can_open_pages() -> bool:
    """Whether there is a desktop to open the page on: without one, a text browser would take the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _listening(option: str, port: int, make: Any) -> Any:
    try:
        return make()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"port {port} cannot be used ({reason}); choose another with {option}") from None


def _osc(show: Show, options: argparse.Namespace, doors: AccessPolicy) -> tuple[UdpServer, TcpServer]:
    """OSC over UDP and TCP on the same port; where any will do, on one that is free for both. Raises UserError."""
    for left in range(9 if options.osc_port == 0 else 0, -1, -1):
        udp = _listening(
            "--osc-port", options.osc_port, lambda: UdpServer(show.osc, options.host, options.osc_port, doors)
        )
        try:
            return udp, _listening(
                "--osc-port", udp.port, lambda port=udp.port: TcpServer(show.osc, options.host, port, doors)
            )
        except UserError:
            udp.close()
            if not left:
                raise
    raise AssertionError


def say(line: str, end: str = "\n") -> None:
    """Prints for whoever listens: where the terminal is gone or the disk is full, the show goes on without."""
    with contextlib.suppress(OSError):
        print(line, end=end, flush=True)


class StatusLine:
    """One line, rewritten twice a second on a terminal, printed every five seconds elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._next = 0.0
        self.first_told = False

    def first(self, seconds: float) -> None:
        """The first transformed frame is out."""
        self.first_told = True
        say(f"{self._clear()}first transformed frame {seconds:.1f} s after the start")

    def show(self, show: Show) -> None:
        """Prints when it is time to."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (0.5 if self._live else 5.0)
            say(f"{self._clear()}{text(show.status())}", "" if self._live else "\n")

    def end(self, show: Show) -> None:
        """The last line stays."""
        say(f"{self._clear()}{text(show.status())}")

    def _clear(self) -> str:
        return "\r\033[K" if self._live else ""


def facts(show: Show) -> dict[str, Any]:
    """How the show goes, for the log."""
    status = show.status()
    names = ("fps", "latency_ms", "frames", "engine_starts", "errors", "refused", "osc_messages", "source_frames")
    return {name: status[name] for name in names} | {"memory_mib": round(psutil.Process().memory_info().rss / 2**20, 1)}


def text(status: Mapping[str, Any]) -> str:
    """``14.9 fps  92 ms  frames 120  skipped 0  dropped 3  refused 0``."""
    if not status["engine"]:
        return "the engine is starting …"
    engine = status["engine"]
    line = f"{status['fps']:5.1f} fps  {status['latency_ms']:4.0f} ms  frames {status['frames']}"
    line += f"  skipped {engine['skipped']}  dropped {engine['dropped']}  refused {status['refused']}"
    if not status["engine_ready"]:
        line += "  engine restarting, output held"
    elif engine["loading"]:
        line += "  loading …"
    elif engine["accelerator"].startswith("compiling"):
        line += f"  {engine['accelerator']} …"
    return line
