"""OSC over UDP. A flood is read in batches and coalesced, so that a slow handler never delays the newest value."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Any

from bridge.network.access import AccessPolicy
from bridge.network.listen import bind_udp
from bridge.osc.coalesce import coalesce
from bridge.osc.dispatch import OscControl, Peer
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
#: Requested size of the system's receive buffer, which the system may cap.
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
MAX_BATCH_PACKETS = 4096
MAX_DATAGRAM_BYTES = 65536
#: Longest wait for a datagram, and the pause after a failure, in seconds.
WAIT_SECONDS, RETRY_SECONDS = 0.2, 0.05
#: Where a datagram came from, as the system has it: host and port, with IPv6 also flow and zone.
SocketAddress = tuple[Any, ...]


class UdpServer:
    """Receives datagrams on its own thread and passes them to ``control``. Raises OSError if the port is in use."""

    def __init__(self, control: OscControl, host: str, port: int, access: AccessPolicy | None = None) -> None:
        self._control, self._admits = control, (access or AccessPolicy(host)).admits
        self._socket = bind_udp(host, port)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self.port: int = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osc-udp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop receiving."""
        self._stop.set()
        self._thread.join(2)
        self._selector.close()
        self._socket.close()

    def _run(self) -> None:
        limit = RateLimit()
        while not self._stop.is_set():
            try:
                self._serve()
            except Exception:  # no memory left, or a network that goes: that may pass
                if limit.passes()[0]:
                    log.exception("OSC over UDP failed; trying again")
                self._stop.wait(RETRY_SECONDS)

    def _serve(self) -> None:
        """Handle the datagrams that are waiting."""
        if not self._selector.select(WAIT_SECONDS):
            return
        batch = list(self._receive_batch())
        remaining = coalesce(batch)
        self._control.count_coalesced(len(batch) - len(remaining))
        for data, address in remaining:
            self._handle(data, address)

    def _receive_batch(self) -> Iterator[tuple[bytes, SocketAddress]]:
        """Yield the datagrams that are waiting, from admitted networks."""
        for _ in range(MAX_BATCH_PACKETS):
            try:
                data, address = self._socket.recvfrom(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # Windows reports here that an earlier answer was not deliverable
            if self._admits(address[0]):
                yield data, address
            else:
                self._control.reject("its network is not allowed (--allow)", f"OSC from {address[0]}")

    def _handle(self, data: bytes, address: SocketAddress) -> None:
        try:
            self._control.handle_packet(data, self._peer(address))
        except Exception:  # one packet must not end the thread
            log.exception("a packet from %s could not be handled", address)

    def _peer(self, address: SocketAddress) -> Peer:
        return Peer(
            f"OSC from {address[0]}",
            address,
            lambda packet: self._send(packet, address),
            lambda port: self._peer((address[0], port, *address[2:])),
            address=str(address[0]),
        )

    def _send(self, packet: bytes, address: SocketAddress) -> None:
        self._socket.sendto(packet, address)
