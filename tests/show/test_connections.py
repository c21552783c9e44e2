"""Connections without end against the real command, with few descriptors: the show plays, the operator gets in."""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import psutil
import pytest

from bridge.network.discovery import local_addresses
from bridge.osc.subscriptions import encode_message
from tests.show.stage import Command
from tests.waiting import thorough, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX systems")]
OPTIONS = ("--source", "pattern:plasma", "--sink", "null:", "--size", "128x128", "--steps", "1", "--session", "none")
HALF_REQUEST = b"GET /health HTTP/1.1\r\nX-Unfinished: y"
UPGRADE = (
    b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer secret\r\n\r\n"
)
#: Longest wait for an answer to OSC, in seconds. The machine also runs the attacker, so one answer in ten may be late.
ANSWER_SECONDS = 0.1
OUTSIDE = next((address for address in local_addresses() if not address.startswith("127.")), "")


@contextmanager
def descriptors_of_tests(count: int) -> Iterator[None]:
    """Let this process open ``count`` connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < count:
        pytest.xfail(f"this system permits {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask_osc(desk: socket.socket, port: int) -> float:
    """Ask for a value and return how long the answer took, in seconds."""
    start = time.perf_counter()
    desk.sendto(encode_message("/phosphene/strength", "?"), ("127.0.0.1", port))
    assert desk.recv(1024).startswith(b"/phosphene/strength")
    return time.perf_counter() - start


def is_healthy(command: Command) -> bool:
    with suppress(OSError), urllib.request.urlopen(command.page() + "health", timeout=5) as answer:
        return bool(json.load(answer)["healthy"])
    return False


def open_all(stack: ExitStack, count: int, address: tuple[str, int], data: bytes) -> list[socket.socket]:
    """Open connections that send ``data``; those that are refused or replaced count too."""
    clients = []
    for _ in range(count):
        with suppress(OSError):
            client = stack.enter_context(socket.create_connection(address, timeout=5))
            clients.append(client)
            client.sendall(data)
    return clients


@pytest.mark.parametrize(("descriptors", "count"), [pytest.param(1024, 1100, marks=thorough), (256, 300)])
def test_half_requests_and_packets_do_not_end_a_show(descriptors: int, count: int) -> None:
    with (
        descriptors_of_tests(2 * count + 200),
        Command(*OPTIONS, "--no-standby", descriptors=descriptors) as command,
        ExitStack() as stack,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk,
    ):
        desk.settimeout(5)
        osc, http = command.osc_port(), urlsplit(command.page()).port or 0
        until(lambda: is_healthy(command), 90, "a healthy show")
        process = psutil.Process(command.process.pid)
        frames = command.status()["frames"]
        open_all(stack, count, ("127.0.0.1", http), HALF_REQUEST)
        open_all(stack, count, ("127.0.0.1", osc), b"\0\0\1\0/half")
        answers = sorted(ask_osc(desk, osc) for _ in range(20))
        assert answers[17] < ANSWER_SECONDS, answers
        assert process.num_fds() < descriptors - 20, "the engine, files and sinks still have some"
        assert is_healthy(command), "while they are open"
        until(lambda: command.status()["frames"] > frames + 5, 20, "new frames")
        stack.close()
        until(lambda: is_healthy(command), 20, "a healthy show afterwards")
        assert command.process.poll() is None
        assert "Traceback" not in command.output


def test_an_engine_is_replaced_with_few_descriptors_while_connections_are_held() -> None:
    with (
        descriptors_of_tests(1000),
        Command(*OPTIONS, descriptors=256) as command,
        ExitStack() as stack,
    ):
        http = urlsplit(command.page()).port or 0
        until(lambda: is_healthy(command), 90, "a healthy show")
        process = psutil.Process(command.process.pid)
        open_all(stack, 200, ("127.0.0.1", http), b"GET /" + UPGRADE)
        open_all(stack, 200, ("127.0.0.1", command.osc_port()), b"\0\0\1\0/half")
        open_all(stack, 200, ("127.0.0.1", http), HALF_REQUEST)
        first = command.status()["engine_pid"]
        psutil.Process(first).kill()
        until(lambda: is_healthy(command) and command.status()["engine_pid"] != first, 60, "another engine")
        assert process.num_fds() < 256
        assert "Too many open files" not in command.output


@pytest.mark.skipif(not OUTSIDE, reason="this machine has only the loopback address")
@pytest.mark.parametrize(("path", "per_stranger"), [(b"/", 8), (b"/panel", 8), (b"/output.mjpg", 16)])
def test_a_stranger_cannot_lock_the_operator_out(path: bytes, per_stranger: int) -> None:
    """An address of this machine that is not the loopback's counts as another machine."""
    strangers = ("--host", "0.0.0.0", "--allow", OUTSIDE, "--token", "secret")
    with (
        descriptors_of_tests(1000),
        Command(*OPTIONS, "--no-standby", *strangers, descriptors=1024) as command,
        ExitStack() as stack,
    ):
        http = urlsplit(command.page()).port or 0
        until(lambda: is_healthy(command), 90, "a healthy show")
        admitted = 0
        for client in open_all(stack, 100, (OUTSIDE, http), b"GET " + path + UPGRADE):
            with suppress(OSError):
                admitted += client.recv(12)[9:12] in (b"101", b"200")
        assert 1 <= admitted <= per_stranger
        open_all(stack, 300, (OUTSIDE, http), HALF_REQUEST)
        operator = stack.enter_context(socket.create_connection(("127.0.0.1", http), timeout=5))
        operator.sendall(b"GET /panel" + UPGRADE)
        assert operator.recv(12)[9:12] == b"101"
        assert is_healthy(command)
