"""Zeroconf announcement of the show: OSCQuery as ``_oscjson._tcp``, OSC as ``_osc._udp``."""

from __future__ import annotations

import logging
import socket
import threading

import ifaddr
from zeroconf import InterfaceChoice, IPVersion, ServiceInfo, Zeroconf

from bridge.network.listen import resolve_address
from bridge.rate_limit import OneLine
from engine.shared.errors import first_line
from engine.shared.text import to_line

log = logging.getLogger(__name__)
logging.getLogger("zeroconf").addFilter(OneLine())  # an interface without a route is a traceback there


class Announcement:
    """Announces the services while the show runs. Works in the background; a failure is one log line."""

    def __init__(self, host: str, osc_port: int, http_port: int, name: str = "Phosphene") -> None:
        self._host, self._ports = host, {"_oscjson._tcp.local.": http_port, "_osc._udp.local.": osc_port}
        host_name = to_line(socket.gethostname().split(".")[0], 30)
        self._name = f"{name} {host_name} {http_port}"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zeroconf", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Withdraw the services."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            addresses, interfaces, version = announced_addresses(self._host)
            zeroconf = Zeroconf(interfaces=interfaces, ip_version=version)
            try:
                for service in self._services(addresses):
                    zeroconf.register_service(service, cooperating_responders=True)
                self._closed.wait()
                zeroconf.unregister_all_services()
            finally:
                zeroconf.close()
        except Exception as error:  # a network can fail in many ways, and the show needs none
            log.warning("not announced on the network: %s", first_line(error))

    def _services(self, addresses: list[str]) -> list[ServiceInfo]:
        return [
            ServiceInfo(
                service, f"{self._name}.{service}", port=port, parsed_addresses=addresses, properties={"txtvers": "1"}
            )
            for service, port in self._ports.items()
        ]


def announced_addresses(host: str) -> tuple[list[str], InterfaceChoice | list[str], IPVersion]:
    """Return the addresses to announce for ``host``, a name or an address, and where to announce them.

    Raises OSError for an unknown name.
    """
    if host in ("0.0.0.0", ""):
        return local_addresses(), InterfaceChoice.All, IPVersion.V4Only
    if host == "::":
        addresses = [address for address in (*local_addresses(), *local_addresses(ipv6=True)) if address != "::1"]
        return addresses, list(addresses), IPVersion.All
    family, address = resolve_address(host, 0, socket.SOCK_DGRAM)
    plain = str(address[0]).split("%")[0]
    if plain == "::1":  # multicast has no way there: programs on this machine hear it on the other loopback
        return [plain], ["127.0.0.1"], IPVersion.V4Only
    return [plain], [plain], IPVersion.V6Only if family == socket.AF_INET6 else IPVersion.V4Only


def local_addresses(ipv6: bool = False) -> list[str]:
    """Return the IPv4 (or IPv6) addresses of all interfaces, in ascending text order, the loopback's among them."""
    ips = [address for adapter in ifaddr.get_adapters() for address in adapter.ips if address.is_IPv4 != ipv6]
    addresses = {str(address.ip[0] if isinstance(address.ip, tuple) else address.ip) for address in ips}
    return sorted(addresses | {"::1" if ipv6 else "127.0.0.1"})


def outside_address() -> str:
    """Return the address at which other machines reach this one: that of the default route, or any other."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # selects the route; nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return local_addresses()[-1]
