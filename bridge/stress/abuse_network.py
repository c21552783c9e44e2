"""Abuses over the network: idle and malformed connections, sockets without end, text that is no Unicode, floods."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from dataclasses import astuple
from pathlib import Path

import aiohttp

from bridge.stress.abuse import Abuse, Target, require
from bridge.stress.real_show import LOOK_SECONDS, RealShow
from bridge.stress.senders import LOCALHOST, SENDERS

#: Connections that one attacker opens, malformed requests that one sends, and WebSockets of one OSCQuery client.
CONNECTIONS, MALFORMED_REQUESTS, WEBSOCKETS = 1100, 1700, 200
#: Time for which connections are held, in seconds.
HOLD_SECONDS = 3.0
MALFORMED_HEADERS = (
    b"Host: [",
    b"Host: [::1",
    b"Host: \xff\xfe",
    b"Host: a\r\nOrigin: http://[",
    b"Host: 127.0.0.1\r\nOrigin: http://[::1",
    b"Host: 127.0.0.1\r\nOrigin: \xed\xa0\xbd",
    b'Host: 127.0.0.1\r\nCookie: phosphene_token="\\777; a=b; =; \xff',
    b"Host: 127.0.0.1\r\nCookie: phosphene_token=\xed\xa0\xbd",
    b"Host: 127.0.0.1\r\nAuthorization: Bearer \xff\xff",
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x",
)


def send_unfinished_requests(target: Target) -> str:
    """Open more connections than the show may have files, each with half a request."""
    count = _hold(target, target.show.ports.http, b"GET /health HTTP/1.1\r\nX-Unfinished: y", CONNECTIONS)
    return f"{count} connections were opened; the panel's port answered an operator meanwhile"


def open_silent_osc_connections(target: Target) -> str:
    """Open as many OSC connections over TCP, each with half a packet."""
    count = _hold(target, target.show.ports.tcp, b"\0\0\1\0/phos", CONNECTIONS)
    return f"{count} connections were opened; OSC over UDP answered meanwhile"


def _hold(target: Target, port: int, start: bytes, count: int) -> int:
    """Hold ``count`` connections with ``start`` sent on each; return how many could be opened at once."""
    _raise_descriptor_limit(count + 200)
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                client = socket.create_connection((LOCALHOST, port), 1.0)
                clients.append(client)
                client.sendall(start)
        end = time.perf_counter() + HOLD_SECONDS
        while time.perf_counter() < end:
            require(target.show.process.poll() is None, f"the show ended: {target.show.lines[-1:]}")
            require(target.show.is_healthy(), "the operator's /health was not answered while they were open")
            time.sleep(LOOK_SECONDS)
        return len(clients)
    finally:
        for client in clients:
            client.close()


def _raise_descriptor_limit(count: int) -> None:
    """Let this process have ``count`` open files, as far as the system permits."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def send_malformed_requests(target: Target) -> str:
    """Send headers that no browser sends, and look whether the log still has a line from before."""
    show, marker = target.show, f"before-{time.perf_counter_ns()}"
    show.send(f"/{marker}", 1.0)
    show.wait_until(lambda: marker in _panel_log(show), "line in the panel's log")
    answered: dict[bytes, int] = {}
    for number in range(MALFORMED_REQUESTS):
        header = MALFORMED_HEADERS[number % len(MALFORMED_HEADERS)]
        with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, show.ports.http), 2.0) as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + header + b"\r\nConnection: close\r\n\r\n")
            status = client.recv(64)[9:12]
            answered[status] = answered.get(status, 0) + 1
    failed = sum(count for status, count in answered.items() if status.startswith(b"5"))
    require(not failed, f"{failed} answers of the kind 5xx")
    require(marker in _panel_log(show), "the panel's log has lost its lines")
    statuses = ", ".join(f"{count}× {status.decode(errors='replace')}" for status, count in sorted(answered.items()))
    return f"answered {statuses}; the log is intact"


def _panel_log(show: RealShow) -> str:
    """Return the log lines that a panel is sent when it connects. Raises OSError."""

    async def read() -> str:
        async with aiohttp.ClientSession() as session, session.ws_connect(_url(show, "panel"), max_msg_size=0) as panel:
            return "\n".join((await panel.receive_json(timeout=5))["log"])

    try:
        return asyncio.run(read())
    except (aiohttp.ClientError, TimeoutError, TypeError, ValueError) as error:
        raise OSError(str(error)) from None


def _url(show: RealShow, path: str) -> str:
    return f"http://{LOCALHOST}:{show.ports.http}/{path}"


def use_up_websockets(target: Target) -> str:
    """Open OSCQuery WebSockets until no more are admitted, then a panel."""
    _raise_descriptor_limit(WEBSOCKETS + 200)

    async def attack() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sockets = []
            for _ in range(WEBSOCKETS):
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    sockets.append(await session.ws_connect(_url(target.show, "")))
            try:
                async with session.ws_connect(_url(target.show, "panel"), max_msg_size=0) as panel:
                    require("table" in await panel.receive_json(timeout=5), "the panel was not sent its table")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                require(False, f"the operator's panel could not connect: {error}")
            for one in sockets:
                await one.close()
            return len(sockets)

    return f"{asyncio.run(attack())} of {WEBSOCKETS} OSCQuery clients admitted; the panel connected"


def send_lone_surrogate(target: Target) -> str:
    """Set a prompt that is no valid Unicode from a panel, then kill the engine."""
    show = target.show

    async def attack() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(_url(show, "panel"), max_msg_size=0) as panel:
            await panel.send_str('{"set": "prompt", "value": "\\ud83d"}')
            await panel.send_str('{"set": "\\ud83d", "value": 1}')
            await panel.send_str('{"set": "preset/save", "value": "\\ud83d"}')

    before = show.status()
    asyncio.run(attack())
    show.wait_until(lambda: show.status()["refused"] >= before["refused"] + 3, "three rejections")
    show.kill_engine()
    frames = show.status()["frames"]
    show.wait_until(lambda: show.status()["frames"] > frames + 5, "frames after the kill")
    require(show.status()["engine_starts"] == before["engine_starts"] + 1, "the engine was started several times")
    saved = (target.scratch.folder / "session.json").read_bytes()
    require(b"\\ud83d" not in saved, "the session file holds it")
    return "rejected; the engine was back after one start"


def frame_the_panel(target: Target) -> str:
    """Ask for the panel as another site's page would show it in a frame."""
    import urllib.request

    request = urllib.request.Request(_url(target.show, ""), headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        policy, options = answer.headers.get("Content-Security-Policy", ""), answer.headers.get("X-Frame-Options", "")
    require("frame-ancestors" in policy and options, "no header keeps other sites from framing the panel")
    return f"X-Frame-Options: {options}"


def flood(target: Target) -> str:
    """Send every load of `stress load` for some seconds each."""
    show, names = target.show, [name for name in SENDERS if name != "baseline"]
    before = show.status()
    for name in names:
        sender = [sys.executable, "-m", "bridge.stress.senders", name]
        target.scratch.run([*sender, *map(str, astuple(show.ports)), str(target.seconds)], target.seconds + 120)
        require(show.process.poll() is None, f"the show ended under {name}: {show.lines[-1:]}")
        show.wait_until(show.is_healthy, f"healthy show after {name}")
    status = show.status()
    require(status["engine_starts"] == before["engine_starts"], "the engine was restarted")
    show.send("/master", float(before["parameters"]["/master"]))
    show.wait_until(lambda: show.status()["parameters"]["/master"] == before["parameters"]["/master"], "last value")
    messages = status["osc_messages"] - before["osc_messages"]
    limit = _descriptor_limit(show.process.pid)
    return f"{len(names)} loads of {target.seconds:g} s, {messages:,} messages{limit}"


def _descriptor_limit(pid: int) -> str:
    """Return how many descriptors the show may have, as Linux tells."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    line = next((line.split() for line in lines if line.startswith("Max open files")), None)
    return f", at most {line[3]} descriptors" if line else ""


NETWORK = (
    Abuse("1,100 unfinished HTTP requests", send_unfinished_requests),
    Abuse("1,100 unfinished OSC packets over TCP", open_silent_osc_connections),
    Abuse("1,700 malformed HTTP headers", send_malformed_requests),
    Abuse("200 OSCQuery WebSockets", use_up_websockets),
    Abuse("text that is no Unicode, then the engine killed", send_lone_surrogate),
    Abuse("the panel in a frame of another site", frame_the_panel),
    Abuse("floods", flood),
)
