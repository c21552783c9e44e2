"""Discovery over zeroconf on the loopback interface, and the addresses of this machine."""

from __future__ import annotations

import socket

from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

from bridge.network.discovery import Announcement, local_addresses, outside_address
from tests.waiting import until


class Services(ServiceListener):
    def __init__(self) -> None:
        self.ports: dict[str, int] = {}

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name)
        if info is not None and name.startswith("Phosphene"):
            self.ports[type_] = info.port or 0

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.ports.pop(type_, None)


def test_a_client_discovers_both_ports_until_the_show_ends() -> None:
    announcement = Announcement("127.0.0.1", 39000, 39001, "Phosphene test")
    services = Services()
    zeroconf = Zeroconf(interfaces=["127.0.0.1"])
    browser = ServiceBrowser(zeroconf, ["_oscjson._tcp.local.", "_osc._udp.local."], services)
    until(lambda: services.ports == {"_oscjson._tcp.local.": 39001, "_osc._udp.local.": 39000}, 10)
    announcement.close()
    until(lambda: services.ports == {}, 10)
    browser.cancel()
    zeroconf.close()


def test_the_addresses_of_this_machine_can_be_bound() -> None:
    addresses = local_addresses()
    assert "127.0.0.1" in addresses
    for address in {*addresses, outside_address()}:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
