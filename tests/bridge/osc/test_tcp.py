"""OSC over TCP, queries and subscriptions: clients written from the specifications, and liblo's oscsend."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from pythonosc.osc_message import OscMessage

from bridge.control.state import State
from bridge.network.quota import MAX_TCP_CONNECTIONS
from bridge.osc.dispatch import OscControl
from bridge.osc.framing import MAX_PACKET_BYTES, Framing, LengthPrefixed, Slip, detect_framing
from bridge.osc.subscriptions import MAX_SUBSCRIBERS, encode_message
from bridge.osc.tcp import MAX_UNSENT_BYTES, TcpServer
from bridge.osc.udp import UdpServer
from engine.shared.table import ROOT
from tests.requirements_system import needs
from tests.waiting import until


class Desk:
    """A state with its OSC servers."""

    def __init__(self) -> None:
        self.state = State()
        self.control = OscControl(self.state, lambda: {"fps": 12.5, "state": "live"})
        self.udp = UdpServer(self.control, "127.0.0.1", 0)
        self.tcp = TcpServer(self.control, "127.0.0.1", 0)

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()
        self.control.close()

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.tcp.port), timeout=5)
        client.settimeout(5)
        return client

    def real(self, name: str) -> float:
        return self.state.snapshot().real(name)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def text(value: str) -> bytes:
    """Return an OSC string: ASCII and a NUL, padded to four bytes."""
    data = value.encode() + b"\0"
    return data + b"\0" * (-len(data) % 4)


def message(address: str, value: float) -> bytes:
    return text(address) + text(",f") + struct.pack(">f", value)


def slip_encode(packet: bytes) -> bytes:
    """Encode as in RFC 1055, byte by byte."""
    out = bytearray([192])
    for byte in packet:
        out += bytes([219, 220]) if byte == 192 else bytes([219, 221]) if byte == 219 else bytes([byte])
    return bytes(out + bytes([192]))


WRAPS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda packet: struct.pack(">I", len(packet)) + packet,
    "slip": slip_encode,
}


def slip_decode(data: bytes) -> list[bytes]:
    return [part.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb") for part in data.split(b"\xc0") if part]


@pytest.mark.parametrize("kind", WRAPS)
def test_packets_arrive_however_the_stream_is_split(kind: str) -> None:
    rng = random.Random(3)
    packets = [
        bytes(rng.choice([0, 47, 192, 219, 220, 221, 65]) for _ in range(rng.randint(1, 60))) for _ in range(200)
    ]
    stream = b"".join(WRAPS[kind](packet) for packet in packets)
    framing: Framing = LengthPrefixed() if kind == "length" else Slip()
    packets_read, place = [], 0
    while place < len(stream):
        size = rng.randint(1, 40)
        packets_read += framing.feed(stream[place : place + size])
        place += size
    assert packets_read == packets
    assert framing.wrap(packets[0]) == WRAPS[kind](packets[0])
    assert type(detect_framing(stream[0])) is type(framing)


def test_a_malformed_stream_is_rejected() -> None:
    with pytest.raises(ValueError, match="announced packet length"):
        LengthPrefixed().feed(struct.pack(">I", MAX_PACKET_BYTES + 1))
    with pytest.raises(ValueError, match="invalid SLIP escape"):
        Slip().feed(b"/a\xdbx")
    with pytest.raises(ValueError, match="longer than"):
        Slip().feed(b"/" * (MAX_PACKET_BYTES + 2))


@pytest.mark.parametrize("kind", WRAPS)
def test_a_client_of_either_framing_sets_queries_and_subscribes(kind: str, desk: Desk) -> None:
    wrap = WRAPS[kind]
    with desk.connect() as client:
        sent = wrap(message("/phosphene/strength", 0.25))
        client.sendall(sent[:7])
        time.sleep(0.05)
        client.sendall(sent[7:] + wrap(message("/phosphene/mix", 0.5)))
        until(lambda: (desk.real("/strength"), desk.real("/mix")) == (0.25, 0.5))
        client.sendall(wrap(text("/phosphene/strength") + text(",s") + text("?")))
        answer = client.recv(4096)
        assert answer == wrap(message("/phosphene/strength", 0.25)), "in the client's own framing"
        client.sendall(wrap(text("/phosphene/subscribe") + text(",")))
        until(lambda: desk.control.subscriptions.count == 1)
        desk.state.set("/strength", [0.75], "another")
        received = b""
        while wrap(message("/phosphene/strength", 0.75)) not in received:
            received += client.recv(65536)
        while b"/phosphene/status/fps" not in received:
            received += client.recv(65536)
        assert wrap(message("/phosphene/mix", 0.5)) in received, "all present values first"
    until(lambda: desk.control.subscriptions.count == 0 and not desk.tcp.clients)
    assert desk.state.rejected == 0


def test_a_client_that_disconnects_or_sends_garbage_disturbs_no_other(desk: Desk) -> None:
    good = desk.connect()
    for garbage in (
        b"\x00\xff\xff\xff",
        b"\x00\x10",
        slip_encode(b"GET / HTTP/1.1"),
        b"\xc0\xdb\x00",
        b"GET / HTTP/1.1\r\n\r\n" * 60_000,
    ):
        with desk.connect() as bad:
            try:
                bad.sendall(garbage)
            except OSError:
                pass  # it has been disconnected already
    good.sendall(slip_encode(message("/phosphene/strength", 0.125)))
    until(lambda: desk.real("/strength") == 0.125)
    until(lambda: desk.state.rejected >= 4)
    until(lambda: len(desk.tcp.clients) == 1)
    good.close()


def test_clients_above_the_limit_are_rejected(desk: Desk) -> None:
    clients = [desk.connect() for _ in range(MAX_TCP_CONNECTIONS)]
    for client in clients:
        client.sendall(slip_encode(message("/phosphene/strength", 0.5)))
    until(lambda: all(client.has_sent for client in desk.tcp.clients) and len(desk.tcp.clients) == MAX_TCP_CONNECTIONS)
    rejected = [desk.connect() for _ in range(5)]
    until(lambda: desk.state.rejected >= 5)
    assert len(desk.tcp.clients) == MAX_TCP_CONNECTIONS
    clients[1].sendall(slip_encode(message("/phosphene/mix", 0.25)))
    until(lambda: desk.real("/mix") == 0.25)
    for client in (*clients, *rejected):
        client.close()
    until(lambda: not desk.tcp.clients)


def test_a_new_client_replaces_the_oldest_that_is_silent(desk: Desk) -> None:
    silent = [desk.connect() for _ in range(MAX_TCP_CONNECTIONS)]
    silent[0].sendall(slip_encode(message("/phosphene/strength", 0.5)))
    silent[1].sendall(b"\0\0\1\0/half")
    until(lambda: sum(client.has_sent for client in desk.tcp.clients) == 1)
    until(lambda: len(desk.tcp.clients) == MAX_TCP_CONNECTIONS)
    operator = desk.connect()
    operator.sendall(slip_encode(message("/phosphene/mix", 0.25)))
    until(lambda: desk.real("/mix") == 0.25)
    assert silent[1].recv(1) == b"", "the half packet is the oldest of those without a whole one"
    silent[0].sendall(slip_encode(message("/phosphene/mix", 0.5)))
    until(lambda: desk.real("/mix") == 0.5)
    for client in (*silent, operator):
        client.close()


def test_a_client_that_does_not_read_is_disconnected(desk: Desk) -> None:
    client = desk.connect()
    client.sendall(slip_encode(text("/phosphene/subscribe") + text(",")))
    until(lambda: desk.control.subscriptions.count == 1)
    (connection,) = desk.tcp.clients
    for _ in range(1000):
        if connection.broken:
            break
        try:
            for _ in range(1000):
                connection.send(encode_message("/phosphene/prompt", "x" * 4000))
        except OSError:
            break
    assert len(connection.unsent) <= MAX_UNSENT_BYTES + 65536
    until(lambda: not desk.tcp.clients)
    client.close()


def test_udp_subscribers_get_changes_at_a_limited_rate_and_always_the_last_value(desk: Desk) -> None:
    subscriber = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    subscriber.bind(("127.0.0.1", 0))
    subscriber.settimeout(2)
    subscriber.sendto(text("/phosphene/subscribe") + text(","), ("127.0.0.1", desk.udp.port))
    until(lambda: desk.control.subscriptions.count == 1)

    def listen(seconds: float) -> list[tuple[str, object]]:
        messages, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            subscriber.settimeout(max(0.001, end - time.perf_counter()))
            try:
                received = OscMessage(subscriber.recv(65536))
            except TimeoutError:
                break
            messages.append((received.address, received.params[0] if received.params else None))
        return messages

    first = listen(0.5)
    assert {f"{ROOT}{name}" for name in desk.state.snapshot()} <= {address for address, _ in first}
    start = time.perf_counter()
    for i in range(2000):
        desk.state.set("/strength", [i / 2000], "fader")
        time.sleep(0.0004)
    passed = time.perf_counter() - start
    values = [value for address, value in listen(0.5) if address == "/phosphene/strength"]
    assert values[-1] == pytest.approx(1999 / 2000)
    assert len(values) <= passed * 30 + 3
    beats = [address for address, _ in listen(2.5) if address.startswith("/phosphene/status/")]
    assert 2 <= beats.count("/phosphene/status/fps") <= 3
    subscriber.sendto(text("/phosphene/unsubscribe") + text(","), ("127.0.0.1", desk.udp.port))
    until(lambda: desk.control.subscriptions.count == 0)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", 0))
    other.settimeout(2)
    subscriber.sendto(
        text("/phosphene/subscribe") + text(",i") + struct.pack(">i", other.getsockname()[1]),
        ("127.0.0.1", desk.udp.port),
    )
    assert OscMessage(other.recv(65536)).address.startswith("/phosphene/"), "to another port of the same machine"
    for wrong in (struct.pack(">i", -1), struct.pack(">i", 70000)):
        subscriber.sendto(text("/phosphene/subscribe") + text(",i") + wrong, ("127.0.0.1", desk.udp.port))
    until(lambda: desk.state.rejected == 2)
    subscriber.close()
    other.close()


def test_a_query_with_a_pattern_answers_for_each_match_and_changes_nothing(desk: Desk) -> None:
    with desk.connect() as client:
        client.sendall(slip_encode(text("/phosphene/prompt/*/weight") + text(",s") + text("?")))
        received = b""
        while len(slip_decode(received)) < 4:
            received += client.recv(4096)
        assert {OscMessage(packet).address for packet in slip_decode(received)} == {
            f"/phosphene/prompt/{i}/weight" for i in (1, 2, 3, 4)
        }
        number = desk.state.number
        client.sendall(slip_encode(text("/phosphene/panic") + text(",s") + text("?")))
        client.sendall(slip_encode(text("/phosphene/nowhere") + text(",s") + text("?")))
        until(lambda: desk.state.rejected == 2)
        assert desk.state.number == number


@needs("oscsend")
def test_liblo_sends_over_tcp(desk: Desk) -> None:
    subprocess.run(
        ["oscsend", f"osc.tcp://127.0.0.1:{desk.tcp.port}", "/phosphene/strength", "f", "0.375"], check=True, timeout=10
    )
    until(lambda: desk.real("/strength") == 0.375)


def test_one_machine_gets_a_part_of_the_subscriptions_and_this_one_always_some(desk: Desk) -> None:
    subscriptions, sent = desk.control.subscriptions, list[bytes]()
    spoofed = [subscriptions.subscribe(("10.0.0.1", port), sent.append, "10.0.0.1") for port in range(1000)]
    assert spoofed.count(True) == MAX_SUBSCRIBERS // 4
    others = [subscriptions.subscribe((f"10.0.1.{i}", 1), sent.append, f"10.0.1.{i}") for i in range(250)]
    assert others.count(True) == MAX_SUBSCRIBERS // 2
    local = [subscriptions.subscribe(("127.0.0.1", port), sent.append, "127.0.0.1") for port in range(1000)]
    assert local.count(True) == MAX_SUBSCRIBERS // 4
    assert subscriptions.subscribe(("10.0.0.1", 0), sent.append, "10.0.0.1"), "it renews its own"
