"""The panel's port under idle, slow and greedy clients: a real server, and clients that write bytes themselves."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest

from bridge.control.state import State
from bridge.panel import connections
from bridge.panel.server import PanelServer
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from tests.waiting import until

#: Places of the server under test.
PLACES = 16
REQUEST = b"GET /phosphene/strength HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPGRADE = (
    b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PanelServer]:
    """Serve a show that is not open, with few places and short times."""
    for name, seconds in (
        ("HEADER_SECONDS", 1.5),
        ("IDLE_SECONDS", 2.5),
        ("SWEEP_SECONDS", 0.1),
        ("RETRY_SECONDS", 0.05),
    ):
        monkeypatch.setattr(connections, name, seconds)
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    server = PanelServer(show, "127.0.0.1", 0, max_connections=PLACES)
    yield server
    server.close()
    show.close()


def connect(server: PanelServer, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.sendall(data)
    return client


def status(client: socket.socket) -> int:
    """Return the status of the answer; 0 where the connection ended without one."""
    try:
        head = client.recv(65536)
    except ConnectionError:
        return 0
    return int(head.split()[1]) if head.startswith(b"HTTP/") else 0


def ask(server: PanelServer) -> int:
    with connect(server, REQUEST + b"Connection: close\r\n\r\n") as client:
        return status(client)


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_half_requests_are_closed_and_never_keep_a_whole_one_out(server: PanelServer) -> None:
    with ExitStack() as clients:
        half = [clients.enter_context(connect(server, REQUEST)) for _ in range(5 * PLACES)]
        assert server._connections.count <= PLACES
        assert [ask(server) for _ in range(5)] == [200] * 5
        until(lambda: all(map(is_closed, half)), 5, "the end of the half requests")
    until(lambda: server._connections.count == 0)


def test_a_header_byte_by_byte_gets_no_more_time(server: PanelServer) -> None:
    with connect(server, REQUEST + b"X-Slow: ") as client:
        ends = threading.Event()

        def drip() -> None:
            while not ends.wait(0.1):
                try:
                    client.send(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert until(lambda: is_closed(client), 5, "the end of the slow request") > 0.5
        finally:
            ends.set()
            thread.join()


def test_a_connection_may_rest_between_two_requests(server: PanelServer) -> None:
    with connect(server, REQUEST + b"\r\n") as client:
        assert status(client) == 200
        client.sendall(REQUEST + b"\r\n")
        assert status(client) == 200
        until(lambda: is_closed(client), 5, "the end of the idle connection")


def test_streams_and_websockets_are_never_cut_for_others(server: PanelServer) -> None:
    ends = threading.Event()

    def move() -> None:
        number = 0
        while not ends.wait(0.03):
            number += 1
            server._show.presenter.output = Frame(np.full((64, 64, 4), number % 255, np.uint8), number)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        with ExitStack() as clients:
            video = clients.enter_context(connect(server, b"GET /output.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
            panel = clients.enter_context(connect(server, b"GET /panel" + UPGRADE))
            assert (status(video), status(panel)) == (200, 101)
            for _ in range(4):
                half = [clients.enter_context(connect(server, REQUEST)) for _ in range(2 * PLACES)]
                until(lambda half=half: all(map(is_closed, half)), 5, "the end of the half requests")
            for client in (video, panel):
                client.settimeout(5)
                assert client.recv(1024), "it still streams after the time of idle connections"
        until(lambda: server._previews["output"].viewers == 0, 5, "the end of the stream")
    finally:
        ends.set()
        thread.join()


def test_a_stream_without_pictures_frees_its_place_when_its_client_goes(server: PanelServer) -> None:
    server._show.presenter.output = Frame(np.zeros((64, 64, 4), np.uint8), 1)
    for _ in range(3 * PLACES):
        with connect(server, b"GET /output.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as client:
            assert status(client) == 200
            until(lambda: server._previews["output"].viewers == 1)
        until(lambda: server._previews["output"].viewers == 0, 5, "the end of the stream")


def test_a_panel_that_reads_nothing_is_cut_and_holds_up_no_other(
    server: PanelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 2.0)
    head = b"GET /" + UPGRADE
    listen = json.dumps({"COMMAND": "LISTEN", "DATA": "/phosphene/prompt"}).encode()
    frame = struct.pack(">BB4x", 0x81, 0x80 | len(listen)) + listen  # masked with zeros
    with ExitStack() as clients:
        deaf = clients.enter_context(closing(socket.socket()))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        reader = clients.enter_context(connect(server, head + frame))
        deaf.sendall(head + frame)
        until(lambda: sum(bool(paths) for _, paths in server._sockets._listeners.values()) == 2)
        for connection in server._connections._open.values():  # the system itself would take megabytes
            assert connection.link is not None
            connection.link.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        number = 0

        def change() -> bool:
            nonlocal number
            number += 1
            server._show.state.set("/prompt", [f"{number} " + "x" * 3900], "a test")
            reader.settimeout(5)
            reader.recv(65536)
            return len(server._sockets._listeners) == 1

        seconds = until(change, 40, "the end of the one that reads nothing")
        assert number / seconds > 5, "updates a second of the one that reads"


def test_a_large_answer_reaches_a_slow_reader_whole(server: PanelServer) -> None:
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        client.settimeout(5)
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        data = client.recv(1024)
        assert [ask(server) for _ in range(20)] == [200] * 20, "others are accepted meanwhile"
        while chunk := client.recv(1024):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length
    assert len(body) == int(length[1])


def test_no_descriptor_left_is_survived(server: PanelServer, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(socket.socket()) as client, caplog.at_level(logging.ERROR):
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
        try:
            client.connect(("127.0.0.1", server.port))
            until(lambda: any(os.strerror(errno.EMFILE) in record.getMessage() for record in caplog.records))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        client.settimeout(5)
        client.sendall(REQUEST + b"Connection: close\r\n\r\n")
        assert status(client) == 200, "the connection that waited"
    assert len(caplog.records) <= 5


@pytest.mark.parametrize("path", ["/", "/nowhere", "/phosphene/strength?COLOUR", "/status.json", "/output.jpg", "\\["])
def test_no_answer_may_be_shown_in_a_frame(server: PanelServer, path: str) -> None:
    with connect(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()) as client:
        answer = client.recv(65536)
    assert b"X-Frame-Options: SAMEORIGIN" in answer
    assert b"frame-ancestors 'self'" in answer
    assert b"X-Content-Type-Options: nosniff" in answer
    assert b"Referrer-Policy: no-referrer" in answer


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /health HTTP/1.0\r\n\r\n", {503}),  # the engine has not started; no name service is asked for a host
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999\r\n\r\nx", {405}),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nx", {405}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {400}),
        (b"GET //evil.example/?token=x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {303}),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: [::1]:9001\r\n\r\n", {200}),
    ],
)
def test_odd_requests_get_an_answer(server: PanelServer, request_bytes: bytes, expected: set[int]) -> None:
    with connect(server) as client:
        try:
            client.sendall(request_bytes)
        except ConnectionError:
            pass  # it was answered before it was whole
        answer = client.recv(4096)
        assert int(answer.split()[1]) in expected
        assert b"Location: //" not in answer
    assert ask(server) == 200


def frame(opcode: int, payload: bytes, end: bool = True, packed: bool = False) -> bytes:
    """Return a WebSocket frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + struct.pack(">H", size) if size < 1 << 16 else b"\xff" + struct.pack(">Q", size)
    return bytes([opcode | 0x80 * end | 0x40 * packed]) + length + bytes(4) + payload


DEFLATE = zlib.compressobj(wbits=-15)
MESSAGES = {
    "large": frame(1, b"x" * 5_000_000),
    "announced": b"\x81\xff" + struct.pack(">Q", 2**62) + bytes(4),
    "packed": frame(1, DEFLATE.compress(b"x" * 50_000_000) + DEFLATE.flush(zlib.Z_SYNC_FLUSH)[:-4], packed=True),
    "endless": frame(1, b"x" * 1000, end=False) + 200 * frame(0, b"x" * 1000, end=False),
    "reserved": frame(11, b"x"),
    "long ping": frame(9, b"x" * 1000),
    "not text": frame(1, b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_websocket_message_that_must_not_be_ends_its_own_socket_alone(server: PanelServer, kind: str) -> None:
    head = UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    with connect(server, b"GET /" + head) as other, connect(server, b"GET /" + head) as bad:
        assert (status(other), status(bad)) == (101, 101)
        with suppress(ConnectionError):
            bad.sendall(MESSAGES[kind])
        until(lambda: is_closed(bad), 5, "the end of the socket")
        other.sendall(frame(9, b"alive"))
        assert other.recv(1024).endswith(b"alive")


def test_pings_without_end_whose_answers_nobody_reads_need_no_memory(server: PanelServer) -> None:
    with connect(server, b"GET /" + UPGRADE) as client:
        assert status(client) == 101
        client.settimeout(0.5)
        pings = frame(9, b"x" * 125) * 1000
        with suppress(OSError):  # the server no longer reads, because its answers are not read
            for _ in range(200):
                client.sendall(pings)
        (connection,) = server._connections._open.values()
        assert connection.link is not None
        assert connection.link.get_write_buffer_size() < 1 << 20
        assert ask(server) == 200
