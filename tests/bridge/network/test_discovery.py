"""What a client finds over zeroconf on the loopback."""

from __future__ import annotations

from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

from bridge.network.discovery import Announcement
from tests.waiting import until


class Found(ServiceListener):
    def __init__(self) -> None:
        self.there: dict[str, int] = {}

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name)
        if info is not None and name.startswith("Phosphene"):
            self.there[type_] = info.port or 0

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.there.pop(type_, None)


def test_a_client_finds_both_ports_and_sees_them_go() -> None:
    announcement = Announcement("127.0.0.1", 39000, 39001, "Phosphene test")
    found = Found()
    zeroconf = Zeroconf(interfaces=["127.0.0.1"])
    browser = ServiceBrowser(zeroconf, ["_oscjson._tcp.local.", "_osc._udp.local."], found)
    until(lambda: found.there == {"_oscjson._tcp.local.": 39001, "_osc._udp.local.": 39000}, 10)
    announcement.close()
    until(lambda: found.there == {}, 10)
    browser.cancel()
    zeroconf.close()
