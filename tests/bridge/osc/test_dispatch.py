"""OSC input: valid messages are applied, invalid ones are counted, and nothing ends the server."""

from __future__ import annotations

import errno
import functools
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.udp_client import SimpleUDPClient

from bridge.control.state import State
from bridge.osc.dispatch import OscControl
from bridge.osc.subscriptions import Subscriptions, encode_message
from bridge.osc.udp import UdpServer
from engine.shared.parameter import Value
from tests.waiting import until


def message(address: str, *arguments: object) -> bytes:
    builder = OscMessageBuilder(address)
    for argument in arguments:
        builder.add_arg(argument)  # type: ignore[arg-type]
    return bytes(builder.build().dgram)


def bundle(when: float, *contents: bytes) -> bytes:
    """Return a bundle that is due at ``when``, Unix time in seconds or IMMEDIATELY."""
    head = bytes(OscBundleBuilder(when).build().dgram)
    return head + b"".join(struct.pack(">i", len(part)) + part for part in contents)


class Desk:
    """A state, its OSC control and UDP server, and sockets that send to it."""

    def __init__(self) -> None:
        self.state = State()
        self.control = OscControl(self.state)
        self.server = UdpServer(self.control, "127.0.0.1", 0)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client = SimpleUDPClient("127.0.0.1", self.server.port)

    def raw(self, data: bytes) -> None:
        self.socket.sendto(data, ("127.0.0.1", self.server.port))

    def close(self) -> None:
        self.socket.close()
        self.server.close()
        self.control.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


@pytest.mark.parametrize(
    ("address", "arguments", "name", "value"),
    [
        ("/phosphene/strength", 0.25, "/strength", 0.25),
        ("/phosphene/strength", 1, "/strength", 1.0),
        ("/phosphene/strength", 3.5, "/strength", 1.0),
        ("/phosphene/steps", 3.0, "/steps", 3),
        ("/phosphene/freeze", True, "/freeze", True),
        ("/phosphene/prompt", "größer", "/prompt", "größer"),
        ("/phosphene/prompt/1", "one", "/prompt", "one"),
        ("/phosphene/guidance/mode", "full", "/guidance/mode", "full"),
        ("/phosphene/blackout", [], "/blackout", True),
        ("/phosphene/prompt/?/weight", 0.5, "/prompt/3/weight", 0.5),
        ("/phosphene/{master,strength}", 0.125, "/master", 0.125),
        ("/phosphene/s*[!x]rength", 0.75, "/strength", 0.75),
    ],
)
def test_messages(desk: Desk, address: str, arguments: object, name: str, value: object) -> None:
    desk.client.send_message(address, arguments)  # type: ignore[arg-type]
    until(lambda: desk.state.snapshot()[name] == value)
    assert desk.state.rejected == 0


def test_bundles_nest_and_wait_for_their_time_tag(desk: Desk) -> None:
    inner = bundle(IMMEDIATELY, message("/phosphene/seed", 77))
    desk.raw(bundle(IMMEDIATELY, message("/phosphene/strength", 0.125), inner))
    until(lambda: desk.state.snapshot().whole("/seed") == 77)
    assert desk.state.snapshot().real("/strength") == 0.125
    start = time.perf_counter()
    desk.raw(bundle(time.time() + 0.4, message("/phosphene/seed", 78)))
    desk.raw(message("/phosphene/steps", 4))
    until(lambda: desk.state.snapshot().whole("/steps") == 4)
    assert desk.state.snapshot().whole("/seed") == 77, "a waiting bundle delays no other message"
    until(lambda: desk.state.snapshot().whole("/seed") == 78)
    assert 0.3 < time.perf_counter() - start < 2.0
    desk.raw(bundle(time.time() - 100, message("/phosphene/seed", 79)))
    until(lambda: desk.state.snapshot().whole("/seed") == 79)


BAD: dict[str, bytes] = {
    "text for a number": message("/phosphene/strength", "loud"),
    "number for a text": message("/phosphene/prompt", 3),
    "no argument": message("/phosphene/strength"),
    "too many arguments": message("/phosphene/strength", 0.1, 0.2),
    "unknown address": message("/phosphene/colour", 1.0),
    "another program's address": message("/composition/layers/1/clips/1/connect", 1),
    "the root alone": message("/phosphene", 1.0),
    "a pattern that matches nothing": message("/phosphene/zz*", 1.0),
    "an unclosed pattern": message("/phosphene/[a", 1.0),
    "an unknown choice": message("/phosphene/mode", "sideways"),
    "a blob": message("/phosphene/strength", b"\x00\x01\x02\x03"),
    "not a number": message("/phosphene/strength", float("nan")),
    "infinity": message("/phosphene/guidance", float("inf")),
    "minus infinity": message("/phosphene/seed", float("-inf")),
    "a text of 60 KiB": message("/phosphene/prompt", "x" * 61440),
    "an empty packet": b"",
    "noise": bytes(range(256)),
    "a message cut in its address": b"/phosphene/stren",
    "a message cut in its value": message("/phosphene/strength", 0.5)[:-3],
    "type tags without values": b"/phosphene/strength\0,f\0\0",
    "an unknown type tag": b"/phosphene/strength\0,Q\0\0\0\0\0\0",
    "a bundle cut short": bundle(IMMEDIATELY, message("/phosphene/strength", 0.9))[:-6],
    "a bundle with an absurd length": b"#bundle\0" + b"\0" * 7 + b"\1" + struct.pack(">i", 2**31 - 1) + b"/x\0\0",
    "a bundle with a negative length": b"#bundle\0" + b"\0" * 7 + b"\1" + struct.pack(">i", -8) + b"/x\0\0",
    "a bundle whose part begins where it ends": b"#bundle\0" + b"\0" * 7 + b"\1" + struct.pack(">i", -4),
    "a bundle with an empty part": b"#bundle\0" + b"\0" * 7 + b"\1" + bytes(4),
    "a bundle with half a length": bundle(IMMEDIATELY, message("/phosphene/strength", 0.9)) + b"\0\0",
    "a bundle with something else in it": bundle(IMMEDIATELY, message("/phosphene/strength", 0.9), b"else"),
    "a bundle one of whose messages is cut": bundle(
        IMMEDIATELY, message("/phosphene/strength", 0.9), message("/phosphene/seed", 3)[:-4]
    ),
    "a bundle cut in its time tag": b"#bundle\0" + b"\0" * 3,
    "bundles without end": functools.reduce(
        lambda inner, _: bundle(IMMEDIATELY, inner), range(40), message("/phosphene/seed", 3)
    ),
    "a bundle for tomorrow": bundle(time.time() + 86400, message("/phosphene/strength", 0.9)),
    "an address that is not UTF-8": b"/phosphene/\xff\xfe\0\0\0,f\0\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_input_is_counted_and_changes_nothing(desk: Desk, kind: str) -> None:
    before = dict(desk.state.snapshot())
    desk.raw(BAD[kind])
    until(lambda: desk.control.packets == 1)
    until(lambda: desk.state.rejected >= 1)
    assert desk.state.rejected == 1
    assert dict(desk.state.snapshot()) == before
    desk.client.send_message("/phosphene/strength", 0.375)
    until(lambda: desk.state.snapshot().real("/strength") == 0.375)


def test_a_text_above_the_limit_is_rejected(desk: Desk) -> None:
    """Bypass the socket: a datagram cannot carry 64 KiB, TCP can."""
    desk.control.handle_packet(message("/phosphene/prompt", "x" * 65536), "test")
    assert desk.state.rejected == 1


def test_a_fast_desk_loses_no_message(desk: Desk) -> None:
    for k in range(2000):
        desk.client.send_message("/phosphene/seed", k)
    until(lambda: desk.state.snapshot().whole("/seed") == 1999)
    assert desk.control.messages == 2000


def test_any_value_is_a_message_for_subscribers() -> None:
    def read(*values: Value) -> list[object]:
        return OscMessage(encode_message("/phosphene/x", *values)).params

    assert read("a\ud83db", "c\0d", "😀" * 4096) == [r"a\ud83db", r"c\x00d", "😀" * 4096]
    assert read(2**40, -(2**40), True) == [2**31 - 1, -(2**31), 1]
    assert read(1e300, -1e300) == [pytest.approx(3.4028235e38), pytest.approx(-3.4028235e38)]


def test_a_subscriber_that_fails_keeps_no_other_from_its_messages() -> None:
    state, received = State(), list[bytes]()
    subscriptions = Subscriptions(state, dict)

    def fail(_packet: bytes) -> None:
        raise RuntimeError("not an OSError")

    def refuse_long(packet: bytes) -> None:
        if packet.startswith(b"/phosphene/prompt\0"):
            raise OSError(errno.EMSGSIZE, "too long")
        received.append(packet)

    subscriptions.subscribe("bad", fail)
    subscriptions.subscribe("good", refuse_long)
    received.clear()
    for seed in (11, 12):
        state.set("/prompt", [f"prompt {seed}"], "desk")
        state.set("/seed", [seed], "desk")
        until(lambda seed=seed: encode_message("/phosphene/seed", seed) in received, 5, "the seed")  # type: ignore[misc]
    assert subscriptions.count == 2
    subscriptions.close()
