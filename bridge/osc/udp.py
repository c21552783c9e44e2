"""OSC over UDP. A flood is read as fast as it comes; of what says the same thing again and again the last one counts."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Iterator

from bridge.network.access import AccessPolicy
from bridge.osc.coalesce import latest
from bridge.osc.dispatch import OscControl, Peer

log = logging.getLogger(__name__)
#: Bytes that the system may keep for this port, where it lets us; packets that are read before they are looked at.
BUFFER, BATCH = 4 * 1024 * 1024, 4096
LARGEST = 65536


class UdpServer:
    """Receives datagrams on a thread of its own and hands them to ``control``. Raises OSError where the port is taken."""

    def __init__(self, control: OscControl, host: str, port: int, doors: AccessPolicy | None = None) -> None:
        self._control, self._admits = control, (doors or AccessPolicy(host)).admits
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._socket.bind((host, port))
        except (OSError, OverflowError):
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osc-udp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops receiving."""
        self._stop.set()
        self._thread.join(2)
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._socket], [], [], 0.2)[0]:
                continue
            came = list(self._waiting())
            kept = latest(came)
            self._control.overridden(len(came) - len(kept))
            for data, address in kept:
                self._take(data, address)

    def _waiting(self) -> Iterator[tuple[bytes, tuple[str, int]]]:
        """What has come until now from where it may."""
        for _ in range(BATCH):
            try:
                data, address = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # Windows tells here that an answer found nobody
            if self._admits(address[0]):
                yield data, address[:2]
            else:
                self._control.refuse("its network is not let in", f"OSC from {address[0]}")

    def _take(self, data: bytes, address: tuple[str, int]) -> None:
        try:
            self._control.packet(data, self._peer(address))
        except Exception:  # one packet must not end all control
            log.exception("a packet from %s could not be handled", address)

    def _peer(self, address: tuple[str, int]) -> Peer:
        return Peer(
            f"OSC from {address[0]}",
            address,
            lambda packet: self._send(packet, address),
            lambda port: self._peer((address[0], port)),
        )

    def _send(self, packet: bytes, address: tuple[str, int]) -> None:
        self._socket.sendto(packet, address)
