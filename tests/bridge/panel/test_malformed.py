"""Malformed requests: random bytes in every place of a request to a real server, and what they leave in the log."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.control.state import State
from bridge.network.access import AccessPolicy
from bridge.panel.log_lines import MAX_LINES, MAX_LINES_PER_STATEMENT, LogLines
from bridge.panel.server import PanelServer
from bridge.rate_limit import OneLine
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.options import EngineOptions

HEADERS = (
    "Host",
    "Origin",
    "Cookie",
    "Authorization",
    "Upgrade",
    "Connection",
    "Accept",
    "Expect",
    "Content-Length",
    "Transfer-Encoding",
    "Content-Encoding",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
)
#: Parts that parsers stumble over, besides random bytes.
PARTS = (
    b"[",
    b"]",
    b"::1",
    b"%",
    b"%zz",
    b"%ff%00",
    b"//",
    b"\\",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b";",
    b"=",
    b'"\\777"',
    b"phosphene_token=",
    b"Bearer ",
    b"Basic",
    b"http://",
    b"?",
    b"token=",
    b"#",
    b"websocket",
    b"13",
    b"permessage-deflate",
    b"server_max_window_bits=99",
    b"100-continue",
    b"chunked",
    b"gzip",
    b"127.0.0.1",
    b"localhost:99999999",
    b"text/html",
    b"/phosphene/strength",
    b"/panel",
    b"/output.jpg",
    b"/thumbnails/",
    b"AAAAAAAAAAAAAAAAAAAAAA==",
    b"-1",
    b",",
    b"\t",
)
PIECES = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=12)), max_size=5).map(b"".join)


@pytest.fixture(scope="module")
def server() -> Iterator[PanelServer]:
    """Serve a show that is not open, with a token, to clients of which none is this machine's."""
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    server = PanelServer(show, "127.0.0.1", 0, access=AccessPolicy("0.0.0.0", token="käse; ü"))
    yield server
    server.close()
    show.close()


def answer(server: PanelServer, request: bytes) -> bytes:
    """Return the start of the answer; nothing where the server closed the connection or waits for more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return client.recv(4096)
        except (ConnectionError, TimeoutError):
            return b""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.one_of(st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT"]), PIECES),
    target=st.one_of(PIECES.map(lambda text: b"/" + text), PIECES),
    version=st.one_of(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9"]), PIECES),
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), PIECES), max_size=6),
    has_host=st.booleans(),
)
@example(method=b"GET", target=b"/", version=b"HTTP/1.1", headers=[("Host", b"[")], has_host=False)
@example(method=b"GET", target=b"/", version=b"HTTP/1.1", headers=[("Origin", b"http://[")], has_host=True)
@example(method=b"GET", target=b"/?token=\xff", version=b"HTTP/1.1", headers=[], has_host=True)
@example(method=b"GET", target=b"/", version=b"HTTP/1.1", headers=[("Authorization", b"Bearer \xff")], has_host=True)
@example(method=b"GET", target=b"/thumbnails/%00.jpg", version=b"HTTP/1.1", headers=[], has_host=True)
@example(method=b"GET", target=b"/thumbnails/%ed%a0%80.jpg", version=b"HTTP/1.1", headers=[], has_host=True)
def test_no_request_is_an_error_of_the_server(
    server: PanelServer,
    caplog: pytest.LogCaptureFixture,
    method: bytes,
    target: bytes,
    version: bytes,
    headers: list[tuple[str, bytes]],
    has_host: bool,
) -> None:
    lines = [method + b" " + target + b" " + version]
    lines += [b"Host: 127.0.0.1"] if has_host else []
    lines += [name.encode() + b": " + value for name, value in headers]
    caplog.clear()
    head = answer(server, b"\r\n".join(lines) + b"\r\n\r\n")
    assert not head.startswith(b"HTTP/1.1 5"), head
    assert not head.startswith(b"HTTP/1.0 5"), head
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"\0" * 5000, b"\r\n" * 5000, b"GET / HTTP/1.1\r\n" * 3])
def test_what_is_no_http_gets_no_error_either(
    server: PanelServer, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    assert b" 5" not in answer(server, data)[:16]
    assert not caplog.records


def record(text: str, line: int = 1, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("a", level, "a.py", line, text, (), None)


def test_equal_lines_are_one_with_a_count() -> None:
    lines = LogLines()
    lines.emit(record("before", 7))
    for _ in range(1700):
        lines.emit(record("again"))
    assert len(lines.lines) == 2
    assert lines.lines[0].endswith("before")
    assert lines.lines[1].endswith("again (×1700)")
    assert len(lines.pop_unsent()) < 20
    assert not lines.pop_unsent()


def test_varied_lines_of_one_statement_push_out_their_own_kind_alone() -> None:
    lines = LogLines()
    lines.emit(record("before", 7))
    for number in range(5 * MAX_LINES):
        lines.emit(record(f"rejected {number}"))
    assert len(lines.lines) == 1 + MAX_LINES_PER_STATEMENT
    assert lines.lines[0].endswith("before")
    assert lines.lines[-1].endswith(f"rejected {5 * MAX_LINES - 1}")


def test_a_library_reports_one_line_without_a_traceback_at_a_limited_rate() -> None:
    one_line, passed = OneLine(), []
    for number in range(100):
        try:
            raise ValueError(f"first {number}\nsecond")
        except ValueError as error:
            entry = logging.LogRecord("a", logging.ERROR, "a.py", 1, "failed", (), (ValueError, error, None))
        if one_line.filter(entry):
            passed.append(entry)
    assert 1 <= len(passed) <= 10
    assert passed[0].getMessage() == "failed: ValueError: first 0"
    assert passed[0].exc_info is None
