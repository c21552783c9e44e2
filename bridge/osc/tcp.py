"""OSC over TCP, in either framing. One thread serves all clients, and no client can block or starve another."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time

from bridge.network.access import AccessPolicy
from bridge.network.listen import open_listener
from bridge.network.quota import MAX_TCP_CONNECTIONS, Quota, is_loopback
from bridge.osc.dispatch import OscControl, Peer
from bridge.osc.framing import Framing, detect_framing
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
READ_BYTES = 65536
#: Pause after a failure: without descriptors a waiting connection cannot even be rejected.
RETRY_SECONDS = 0.2
#: A client that leaves more than this unread is disconnected.
MAX_UNSENT_BYTES = 1 << 20


class TcpServer:
    """Listens on ``host``:``port`` and passes packets to ``control``. Raises OSError if the port is in use.

    At most ``max_clients`` are connected, of which some places are for this machine alone. Where there is no place
    left, a new client replaces the oldest one of its kind that has not sent a whole packet yet.
    """

    def __init__(
        self,
        control: OscControl,
        host: str,
        port: int,
        access: AccessPolicy | None = None,
        max_clients: int = MAX_TCP_CONNECTIONS,
    ) -> None:
        self._control, self._access = control, access or AccessPolicy(host)
        self._quota, self._limit = Quota(max_clients), RateLimit()
        self._listener = open_listener(host, port)
        self._listener.setblocking(False)
        self._listen_at: float | None = None
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender):
            end.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self.clients: dict[_Client, None] = {}  # in the order of their connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osc-tcp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect all clients and stop listening."""
        self._stop.set()
        self.wake()
        self._thread.join(2)
        for client in list(self.clients):
            self._disconnect(client)
        for end in (self._listener, self._wake_receiver, self._wake_sender):
            end.close()
        self._selector.close()

    def wake(self) -> None:
        """Wake the thread, so that it sends what is queued."""
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # it is awake, or gone

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._serve()
            except Exception:  # no descriptor or no memory left: that may pass
                if self._limit.passes()[0]:
                    log.exception("OSC over TCP failed; trying again")
                self._stop.wait(RETRY_SECONDS)

    def _serve(self) -> None:
        """Handle what the sockets are ready for."""
        if self._listen_at is not None and time.perf_counter() >= self._listen_at:
            self._listen_at = None
            self._selector.register(self._listener, selectors.EVENT_READ, None)
        for key, events in self._selector.select(0.5 if self._listen_at is None else RETRY_SECONDS):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_receiver:
                self._wake_receiver.recv(4096)
            else:
                client: _Client = key.data
                if events & selectors.EVENT_READ and client in self.clients:
                    self._read(client)
                if events & selectors.EVENT_WRITE and client in self.clients:
                    self._write(client)
        for client in list(self.clients):
            if client.broken:
                self._disconnect(client)
            else:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
                self._selector.modify(client.socket, events, client)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if self._limit.passes()[0]:
                log.error("OSC over TCP: a connection could not be accepted (%s)", error.strerror)
            self._selector.unregister(self._listener)  # it would be reported again at once
            self._listen_at = time.perf_counter() + RETRY_SECONDS
            return
        host, name = str(address[0]), f"OSC over TCP from {address[0]}"
        if not self._access.admits(host):
            self._control.reject("its network is not allowed (--allow)", name)
            connection.close()
            return
        if not self._quota.admits(host):
            self._replace_silent_client(host)
        if not self._quota.take(host):
            self._control.reject(f"too many clients at once ({self._quota.held} are connected)", name)
            connection.close()
            return
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(connection, host, name, self)
            self._selector.register(connection, selectors.EVENT_READ, client)
        except OSError:
            self._quota.release(host)
            connection.close()
            return
        self.clients[client] = None

    def _replace_silent_client(self, host: str) -> None:
        """Disconnect the oldest client that has not sent a whole packet: of ``host``, or else of the same kind."""
        silent = [client for client in self.clients if not client.has_sent]
        candidates = [client for client in silent if client.host == host]
        candidates += [client for client in silent if is_loopback(client.host) == is_loopback(host)]
        if candidates:
            self._disconnect(candidates[0])

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect(client)
            return
        try:
            if client.framing is None:
                client.framing = detect_framing(data[0])
            packets = client.framing.feed(data)
        except ValueError as error:
            self._control.reject(f"{error}; disconnected", client.name)
            self._disconnect(client)
            return
        for packet in packets:
            client.has_sent = True
            try:
                self._control.handle_packet(packet, client.peer)
            except Exception:  # one packet must not end the thread
                log.exception("a packet of %s could not be handled", client.name)

    def _write(self, client: _Client) -> None:
        with client.lock:
            try:
                sent = client.socket.send(client.unsent)
                del client.unsent[:sent]
            except BlockingIOError:
                pass
            except OSError:
                client.broken = True

    def _disconnect(self, client: _Client) -> None:
        self._control.disconnect(client.peer)
        if client in self.clients:
            del self.clients[client]
            self._quota.release(client.host)
        try:
            self._selector.unregister(client.socket)
        except (KeyError, ValueError):
            pass
        client.socket.close()


class _Client:
    """One connection. Any thread may send packets to it."""

    def __init__(self, connection: socket.socket, host: str, name: str, server: TcpServer) -> None:
        self.socket, self.host, self.name, self._server = connection, host, name, server
        self.has_sent = False
        self.framing: Framing | None = None
        self.lock = threading.Lock()
        self.unsent = bytearray()
        self.broken = False
        self.peer = Peer(name, self, self.send, address=host)

    def send(self, packet: bytes) -> None:
        """Queue a packet. Raises OSError if the client does not read."""
        framing = self.framing
        if framing is None:
            return
        with self.lock:
            if len(self.unsent) > MAX_UNSENT_BYTES:
                self.broken = True
                raise OSError("the client does not read")
            self.unsent += framing.wrap(packet)
        self._server.wake()
