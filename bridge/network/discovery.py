"""Announces the show over zeroconf, so that clients find it by themselves: OSCQuery as ``_oscjson._tcp``, OSC as ``_osc._udp``."""

from __future__ import annotations

import logging
import socket
import threading

from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf

log = logging.getLogger(__name__)


class Announcement:
    """What is said on the network for as long as the show runs. Nothing waits for it, and a network that refuses is one line."""

    def __init__(self, host: str, osc_port: int, http_port: int, name: str = "Phosphene") -> None:
        self._everywhere = host in ("0.0.0.0", "::", "")
        address = "127.0.0.1" if self._everywhere else host
        addresses = own_addresses() if self._everywhere else [address]
        unique = f"{name} {socket.gethostname().split('.')[0][:30]} {http_port}"
        self.services = [
            ServiceInfo(kind, f"{unique}.{kind}", port=port, parsed_addresses=addresses, properties={"txtvers": "1"})
            for kind, port in (("_oscjson._tcp.local.", http_port), ("_osc._udp.local.", osc_port))
        ]
        self._interfaces: InterfaceChoice | list[str] = InterfaceChoice.All if self._everywhere else [address]
        self._zeroconf: Zeroconf | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zeroconf", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes it back."""
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
        except Exception as error:  # a network may refuse in any way; the show needs none
            log.warning(
                "not announced on the network: %s", str(error).splitlines()[0] if str(error) else type(error).__name__
            )


def own_addresses() -> list[str]:
    """This machine's addresses, as its name resolves and as packets to the outside would carry."""
    found = {"127.0.0.1"}
    try:
        found |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            found.add(probe.getsockname()[0])
    except OSError:
        pass
    return sorted(found)
