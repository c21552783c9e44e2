"""``phosphene run``: one show with its OSC ports, its panel, its session file and its status line."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from bridge import logs, main_loop, release
from bridge.commands.control_inputs import open_control_inputs
from bridge.commands.options import (
    add_engine_options,
    add_flag,
    add_option,
    engine_options,
    parameter_values,
    preset_folders,
    tune_for_latency,
)
from bridge.commands.session_option import find_session_path, lock_session
from bridge.commands.status_line import StatusLine, say, status_facts
from bridge.control.hook_parameters import HookWatch
from bridge.control.state import State
from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.logs import JsonLogHandler
from bridge.network.access import AccessPolicy, confine_files
from bridge.network.discovery import Announcement, outside_address
from bridge.network.listen import HostError, format_host
from bridge.network.quota import ConnectionLimits, raise_descriptor_limit, share_descriptors
from bridge.osc.tcp import TcpServer
from bridge.osc.udp import UdpServer
from bridge.panel.server import PanelServer
from bridge.performance.session import Recovered, Session, recover
from bridge.rate_limit import RateLimit
from bridge.show.show import Show
from bridge.textures import default_sinks, open_default_source, open_sink, open_source
from engine.shared.errors import first_line
from engine.shared.table import ROOT

HELP = "run live: textures in, transformed textures out"
log = logging.getLogger(__name__)
#: Seconds between two entries of the log that record the status.
LOG_STATUS_SECONDS = 60.0
#: Tries to choose a port that is free for both UDP and TCP.
MAX_PORT_TRIES = 10
Server = TypeVar("Server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    textures = parser.add_argument_group("textures")
    here = "this system's transport; see `phosphene doctor`"
    moving = "a moving pattern, until there is a Spout or Syphon sender phosphene-in"
    add_option(textures, "--source", metavar="URL", help="texture source; see `phosphene sources`", default_text=moving)
    add_option(textures, "--control", metavar="URL", help="second source, for ControlNet images and masks")
    add_option(textures, "--sink", metavar="URL", action="append", help="texture sink; repeatable", default_text=here)
    replace = "let a finished recording replace an earlier one of its name, instead of numbering it"
    add_flag(textures, "--overwrite", help=replace)

    control = parser.add_argument_group("control")
    maps = "desk map: grandma3, eos, qlcplus, touchosc, resolume or a .toml file; repeatable"
    add_option(control, "--desk", metavar="NAME", action="append", help=maps)
    add_option(
        control, "--osc-port", type=int, default=9000, metavar="N", help="OSC port, UDP and TCP; 0 for any free one"
    )
    add_option(control, "--midi", metavar="PORT", help="MIDI inputs whose name contains PORT, or all; also MIDI clock")
    add_flag(control, "--link", help="tempo and beat from Ableton Link")
    add_option(control, "--audio", metavar="DEVICE", help="audio input for modulators: 'default' or a part of its name")
    add_flag(control, "--artnet", help="Art-Net input, as /dmx/UNIVERSE/CHANNEL in desk maps")
    add_option(
        control, "--sacn", type=int, metavar="UNIVERSE", action="append", help="sACN universe to receive; repeatable"
    )

    network = parser.add_argument_group("panel and network")
    port = "port of the panel and OSCQuery; 0 for any free one"
    add_option(network, "--http-port", type=int, default=9001, metavar="N", help=port)
    add_option(
        network, "--host", default="127.0.0.1", metavar="ADDRESS", help="listening address; 0.0.0.0 for every network"
    )
    networks = "network that may send OSC and HTTP, such as 192.168.1.0/24; repeatable"
    add_option(network, "--allow", metavar="NETWORKS", action="append", help=networks, default_text="private networks")
    folder = "folder that other machines may load files from; repeatable"
    add_option(network, "--files", metavar="DIR", action="append", help=folder, default_text="the preset folders")
    add_flag(network, "--allow-downloads", help="let other machines name models that are downloaded from the hub")
    add_option(network, "--token", metavar="TEXT", help="panel token for other machines", default_text="random")
    add_flag(network, "--open", help="open the panel in the browser")

    recovery = parser.add_argument_group("recovery and log")
    state, logs = "in the system's state folder", "in the system's log folder"
    session = "crash-recovery file, 'none' to disable; --journal is its old name"
    add_option(recovery, "--session", "--journal", metavar="FILE", help=session, default_text=state)
    resume = "start without the values from before a crash; --fresh is its old name"
    add_flag(recovery, "--no-resume", "--fresh", dest="resume", action="store_false", help=resume)
    standby = "start no standby engine: less memory, slower recovery; --no-spare is its old name"
    add_flag(recovery, "--no-standby", "--no-spare", dest="standby", action="store_false", help=standby)
    add_option(recovery, "--log", metavar="FILE", help="log file in JSON lines, 'none' to disable", default_text=logs)
    add_option(recovery, "--seconds", type=float, metavar="N", help="running time in seconds", default_text="unlimited")
    add_engine_options(parser)


def main(options: argparse.Namespace) -> int:
    """Run until Ctrl-C, a signal or ``--seconds``; return the exit code.

    Raises UserError, also where the engine refuses to start.
    """
    started = time.perf_counter()
    values = parameter_values(options)
    tune_for_latency()
    limits = share_descriptors(raise_descriptor_limit())
    stop = _stop_on_signal()
    access = _access_policy(options)
    with ExitStack() as cleanup:
        _start_log(options, cleanup)
        session_path = find_session_path(options)
        recovered = recover(session_path) if session_path is not None and options.resume else None
        state = State(values | dict(recovered.values) if recovered else values)
        show = _build_show(options, state, access.exposed)
        cleanup.callback(show.close)
        if access.exposed:
            user_folders = [Path(folder) for folder in options.files or ()]
            folders = [*user_folders, *show.automation.presets.folders]
            state.confine = show.files.call("--files", partial(confine_files, folders))
        osc, panel = _open_servers(show, options, access, limits, cleanup)
        inputs = [path for thread in (show.source, show.second) if thread and (path := thread.source.path)]
        for thread in show.sinks:
            thread.sink.reserve(options.overwrite, inputs)
        announcement = Announcement(options.host, osc.port, panel.port)
        cleanup.callback(announcement.close)
        if recovered is not None:
            _restore_cues(show, recovered)
        session: Session | None = None
        if session_path is not None:
            cleanup.callback(lock_session(session_path).release)
        if session_path is not None:
            show.session_files = [session_path, session_path.with_suffix(".old")]
            session = Session(state, session_path, show.automation.cues.position, recovered)
        orderly = False
        try:
            page = _print_addresses(show, options, access, osc.port, panel.port)
            show.open()
            if options.open and can_open_browser():
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
            hook_watch = HookWatch(options.hooks, state, show.files) if options.hooks else None
            status_line = StatusLine()
            try:
                _loop(show, options, stop, started, status_line, recovered is not None)
                orderly = True
                with _reported():
                    log.info("phosphene ends", extra={"facts": status_facts(show)})
            finally:
                if hook_watch is not None:
                    hook_watch.close()
                with _reported():
                    status_line.end(show)
        finally:
            if not orderly:
                for thread in show.sinks:
                    thread.sink.keep_earlier()
            if session is not None:
                session.close(orderly)
    return 0


def _loop(
    show: Show,
    options: argparse.Namespace,
    stop: threading.Event,
    started: float,
    status_line: StatusLine,
    resumed: bool,
) -> None:
    """Update the status line and the log until the show ends. Raises UserError where the engine refuses to start."""
    next_entry, limit = started + LOG_STATUS_SECONDS, RateLimit()
    while not main_loop.wait(stop, 0.1):
        if show.supervisor.rejected:
            hint = "; --no-resume starts without the resumed values" if resumed else ""
            raise UserError(show.supervisor.rejected + hint)
        try:
            if show.first_frame_at is not None and not status_line.first_frame_shown:
                status_line.show_first_frame(show.first_frame_at - started)
            status_line.update(show)
            if time.perf_counter() >= next_entry:
                next_entry += LOG_STATUS_SECONDS
                log.info("running", extra={"facts": status_facts(show)})
        except Exception as error:  # no descriptor or no memory left: the show does not depend on its status
            if limit.passes()[0]:
                log.error("the status could not be reported: %s", first_line(error))
        if options.seconds is not None and time.perf_counter() - started >= options.seconds:
            return


@contextmanager
def _reported() -> Iterator[None]:
    """Log what is raised inside: without descriptors or memory the show still ends in order."""
    try:
        yield
    except Exception as error:
        log.error("the status could not be reported: %s", first_line(error))


def _stop_on_signal() -> threading.Event:
    """Return an event that Ctrl-C and termination signals set."""
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    return stop


def _access_policy(options: argparse.Namespace) -> AccessPolicy:
    try:
        return AccessPolicy(options.host, options.allow or (), options.token or "")
    except ValueError as error:
        raise UserError(f"--allow takes networks such as 192.168.1.0/24: {error}") from None


def _start_log(options: argparse.Namespace, cleanup: ExitStack) -> None:
    """Add the log on disk, unless it is disabled. Raises UserError."""
    if options.log == "none":
        return
    try:
        handler = JsonLogHandler(expand_user(options.log) if options.log else logs.default_path(options.osc_port))
    except OSError as error:
        if options.log:
            raise UserError(f"--log {options.log}: {error.strerror}") from None
        return  # the system's log folder is not writable
    cleanup.callback(handler.close)
    logging.getLogger().addHandler(handler)
    cleanup.callback(logging.getLogger().removeHandler, handler)
    facts = {"pid": os.getpid(), "system": platform.platform()}
    log.info("phosphene %s starts", release() or "from a checkout", extra={"facts": facts})


def _build_show(options: argparse.Namespace, state: State, exposed: bool) -> Show:
    source = open_source(options.source) if options.source else open_default_source()
    sinks = [open_sink(url) for url in options.sink or default_sinks()]
    second = open_source(options.control) if options.control else None
    return Show(
        state,
        source,
        sinks,
        engine_options(options, only_downloads_of_start=exposed and not options.allow_downloads),
        second,
        preset_folders(options),
        options.desk or (),
        options.standby,
    )


def _open_servers(
    show: Show, options: argparse.Namespace, access: AccessPolicy, limits: ConnectionLimits, cleanup: ExitStack
) -> tuple[UdpServer, PanelServer]:
    """Open OSC, the control inputs and the panel. Raises UserError."""
    osc, tcp = _open_osc(show, options, access, limits.tcp)
    cleanup.callback(tcp.close)
    cleanup.callback(osc.close)
    cleanup.enter_context(open_control_inputs(show, options))
    panel = _bind(
        "--http-port",
        options.http_port,
        lambda: PanelServer(show, options.host, options.http_port, osc.port, access, limits.http),
    )
    cleanup.callback(panel.close)
    return osc, panel


def _open_osc(
    show: Show, options: argparse.Namespace, access: AccessPolicy, max_clients: int
) -> tuple[UdpServer, TcpServer]:
    """Open OSC over UDP and TCP on one port; port 0 chooses one that is free for both. Raises UserError."""
    tries = MAX_PORT_TRIES if options.osc_port == 0 else 1
    for tries_left in reversed(range(tries)):
        udp = _bind("--osc-port", options.osc_port, lambda: UdpServer(show.osc, options.host, options.osc_port, access))
        open_tcp = partial(TcpServer, show.osc, options.host, udp.port, access, max_clients)
        try:
            return udp, _bind("--osc-port", udp.port, open_tcp)
        except UserError:
            udp.close()
            if not tries_left:
                raise
    raise AssertionError


def _bind(option: str, port: int, open_server: Callable[[], Server]) -> Server:
    """Return ``open_server()``; raise UserError that names the option where the port is not free."""
    try:
        return open_server()
    except HostError as error:
        raise UserError(f"--host {error.host}: {error.strerror}; 127.0.0.1 and 0.0.0.0 always work") from None
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"port {port} cannot be used ({reason}); choose another with {option}") from None


def _restore_cues(show: Show, recovered: Recovered) -> None:
    """Restore the position in the cue list and print what was resumed."""
    show.automation.cues.restore(recovered.cues)
    cue = f", cue {recovered.cues['cue']}" if recovered.cues.get("cue") else ""
    say(f"resumed  {len(recovered.values)} values from before the crash{cue}; --no-resume starts without them")


def _print_addresses(
    show: Show, options: argparse.Namespace, access: AccessPolicy, osc_port: int, http_port: int
) -> str:
    """Print where textures, OSC and the panel are; return the panel's URL on this machine."""
    every_network = options.host in ("0.0.0.0", "::", "")
    loopback = "[::1]" if options.host == "::" and not socket.has_dualstack_ipv6() else "127.0.0.1"
    page = f"http://{loopback if every_network else format_host(options.host)}:{http_port}/"
    say(f"source   {show.source.source.describe()}")
    if show.second is not None:
        say(f"control  {show.second.source.url}")
    say(f"sinks    {', '.join(thread.sink.describe() for thread in show.sinks)}")
    say(f"OSC      udp {format_host(options.host)}:{osc_port} and tcp, addresses {ROOT}/…")
    say(f"panel    {page}")
    if access.exposed:
        host = outside_address() if every_network else format_host(options.host)
        networks = ", ".join(str(network) for network in access.networks)
        say(f"outside  http://{host}:{http_port}/?token={access.token}, for {networks}")
    return page


def can_open_browser() -> bool:
    """Return whether there is a desktop: without one, a text browser would take over the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
