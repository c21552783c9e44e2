"""Listening on IPv4 and IPv6: OSC over UDP and TCP, the panel's port, and hosts that cannot be listened on."""

from __future__ import annotations

import errno
import json
import socket
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from bridge.control.state import State
from bridge.network.access import AccessPolicy
from bridge.network.discovery import Announcement, announced_addresses, local_addresses
from bridge.network.listen import HostError, bind_udp, format_host, open_listener, resolve_address
from bridge.osc.subscriptions import encode_message
from bridge.osc.tcp import TcpServer
from bridge.osc.udp import UdpServer
from bridge.panel.server import PanelServer
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.options import EngineOptions
from tests.waiting import until


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LINK_LOCAL = [address for address in local_addresses(ipv6=True) if address.startswith("fe80:")]


class House:
    """A show that is not open, listening on one host by UDP, TCP and HTTP."""

    def __init__(self, host: str) -> None:
        self.state = State()
        self.show = Show(self.state, open_source("pattern:still"), [], EngineOptions("cpu"), presets=[])
        access = AccessPolicy(host, token="secret")
        self.udp = UdpServer(self.show.osc, host, 0, access)
        self.tcp = TcpServer(self.show.osc, host, 0, access)
        self.panel = PanelServer(self.show, host, 0, self.udp.port, access)

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.panel, self.udp, self.tcp, self.show):
            part.close()


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "client"), [("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1"), ("localhost", "127.0.0.1")]
)
def test_every_port_listens_on_the_host(host: str, client: str, opened: ExitStack) -> None:
    house = opened.enter_context(House(host))
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    desk = opened.enter_context(closing(socket.socket(family, socket.SOCK_DGRAM)))
    desk.settimeout(5)
    desk.sendto(encode_message("/phosphene/strength", 0.25), (client, house.udp.port))
    until(lambda: house.state.snapshot().real("/strength") == 0.25)
    desk.sendto(encode_message("/phosphene/strength", "?"), (client, house.udp.port))
    assert desk.recv(1024) == encode_message("/phosphene/strength", 0.25), "answers find the way back"
    desk.sendto(encode_message("/phosphene/subscribe", desk.getsockname()[1]), (client, house.udp.port))
    assert desk.recv(1024).startswith(b"/phosphene/")

    with socket.create_connection((client, house.tcp.port), timeout=5) as stream:
        packet = encode_message("/phosphene/mix", 0.5)
        stream.sendall(struct.pack(">I", len(packet)) + packet)
        until(lambda: house.state.snapshot().real("/mix") == 0.5)

    url = f"http://{format_host(client)}:{house.panel.port}"
    for path, key in (("/phosphene/mix", "VALUE"), ("/?HOST_INFO", "OSC_PORT"), ("/status.json", "frames")):
        request = urllib.request.Request(url + path, headers={"Origin": url})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert key in json.load(answer), "this machine needs no token, and the page's own origin is accepted"


@pytest.mark.skipif(not LINK_LOCAL, reason="this machine has no link-local address")
def test_an_address_may_have_a_zone() -> None:
    names = [name for _, name in socket.if_nameindex()]
    for name in names:
        host = f"{LINK_LOCAL[0]}%{name}"
        try:
            receiver = bind_udp(host, 0)
        except HostError:
            continue  # it belongs to another interface
        with closing(receiver), closing(open_listener(host, 0)) as listener:
            assert receiver.getsockname()[3] == listener.getsockname()[3] == socket.if_nametoindex(name)
        assert announced_addresses(host)[0] == [LINK_LOCAL[0]]
        return
    pytest.fail(f"no zone of {names} takes {LINK_LOCAL[0]}")


@pytest.mark.parametrize(
    "host", ["192.0.2.99", "2001:db8::99", "nobody.invalid", "fe80::1%nothing", "a" * 70 + ".x", "é..x"]
)
def test_a_host_that_is_not_this_machine_is_named(host: str) -> None:
    for listen in (bind_udp, open_listener):
        with pytest.raises(HostError) as error:
            listen(host, 0)
        assert error.value.host == host
        assert "no such address" in error.value.strerror or "not an address of this machine" in error.value.strerror


def test_a_port_in_use_or_out_of_range_is_no_error_of_the_host() -> None:
    with closing(open_listener("127.0.0.1", 0)) as listener, pytest.raises(OSError, match="in use") as error:
        open_listener("127.0.0.1", listener.getsockname()[1])
    assert error.value.errno == errno.EADDRINUSE
    assert not isinstance(error.value, HostError)
    with pytest.raises(OverflowError):
        bind_udp("127.0.0.1", 70_000)


def test_hosts_in_urls() -> None:
    assert [format_host(host) for host in ("10.0.0.1", "localhost", "::1", "fe80::1%eth0")] == [
        "10.0.0.1",
        "localhost",
        "[::1]",
        "[fe80::1%25eth0]",
    ]


def test_a_name_prefers_ipv4() -> None:
    assert resolve_address("localhost", 9, socket.SOCK_DGRAM) == (socket.AF_INET, ("127.0.0.1", 9))


@pytest.mark.parametrize("host", ["localhost", "::1", "::", "0.0.0.0", "fe80::1%nothing", "nobody.invalid"])
def test_no_host_makes_the_announcement_raise(host: str) -> None:
    announcement = Announcement(host, 39010, 39011, "Phosphene listen test")
    announcement.close()
    assert not announcement._thread.is_alive()


@needs_ipv6
def test_all_addresses_of_both_families_are_announced_for_the_dual_stack_host() -> None:
    addresses = announced_addresses("::")[0]
    assert "127.0.0.1" in addresses
    assert {address for address in local_addresses(ipv6=True) if address != "::1"} <= set(addresses)
