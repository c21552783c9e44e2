"""Zeroconf announcement of the show: OSCQuery as ``_oscjson._tcp``, OSC as ``_osc._udp``."""

from __future__ import annotations

import logging
import socket
import threading

import ifaddr
from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf

from engine.shared.errors import first_line
from engine.shared.text import to_line

log = logging.getLogger(__name__)


class Announcement:
    """Announces the services while the show runs. Works in the background; a failure is one log line."""

    def __init__(self, host: str, osc_port: int, http_port: int, name: str = "Phosphene") -> None:
        all_interfaces = host in ("0.0.0.0", "::", "")
        addresses = local_addresses() if all_interfaces else [host]
        host_name = to_line(socket.gethostname().split(".")[0], 30)
        unique_name = f"{name} {host_name} {http_port}"
        self.services = [
            ServiceInfo(
                service, f"{unique_name}.{service}", port=port, parsed_addresses=addresses, properties={"txtvers": "1"}
            )
            for service, port in (("_oscjson._tcp.local.", http_port), ("_osc._udp.local.", osc_port))
        ]
        self._interfaces: InterfaceChoice | list[str] = InterfaceChoice.All if all_interfaces else [host]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zeroconf", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Withdraw the services."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            zeroconf = Zeroconf(interfaces=self._interfaces)
            try:
                for service in self.services:
                    zeroconf.register_service(service, cooperating_responders=True)
                self._closed.wait()
                zeroconf.unregister_all_services()
            finally:
                zeroconf.close()
        except Exception as error:  # a network can fail in many ways, and the show needs none
            log.warning("not announced on the network: %s", first_line(error))


def local_addresses() -> list[str]:
    """Return the IPv4 addresses of all network interfaces, in ascending text order, 127.0.0.1 among them."""
    addresses = {str(address.ip) for adapter in ifaddr.get_adapters() for address in adapter.ips if address.is_IPv4}
    return sorted(addresses | {"127.0.0.1"})


def outside_address() -> str:
    """Return the address at which other machines reach this one: that of the default route, or any other."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # selects the route; nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return local_addresses()[-1]
