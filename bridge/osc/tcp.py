"""OSC over TCP, in either framing. One thread serves all clients, and no client can block another."""

from __future__ import annotations

import logging
import selectors
import socket
import threading

from bridge.network.access import AccessPolicy
from bridge.osc.dispatch import OscControl, Peer
from bridge.osc.framing import Framing, detect_framing

log = logging.getLogger(__name__)
MAX_CLIENTS = 128
READ_BYTES = 65536
#: A client that leaves more than this unread is disconnected.
MAX_UNSENT_BYTES = 1 << 20


class TcpServer:
    """Listens on ``host``:``port`` and passes packets to ``control``. Raises OSError if the port is in use."""

    def __init__(self, control: OscControl, host: str, port: int, access: AccessPolicy | None = None) -> None:
        self._control, self._access = control, access or AccessPolicy(host)
        self._listener = socket.create_server((host, port), backlog=64)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender):
            end.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self.clients: set[_Client] = set()
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
            for key, events in self._selector.select(0.5):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_receiver:
                    self._wake_receiver.recv(4096)
                else:
                    client: _Client = key.data
                    if events & selectors.EVENT_READ:
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
        except OSError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(connection, f"OSC over TCP from {address[0]}", self)
        admitted = self._access.admits(address[0])
        if not admitted or len(self.clients) >= MAX_CLIENTS:
            reason = f"more than {MAX_CLIENTS} clients at once" if admitted else "its network is not allowed (--allow)"
            self._control.reject(reason, client.name)
            connection.close()
            return
        self.clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

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
        self.clients.discard(client)
        try:
            self._selector.unregister(client.socket)
        except (KeyError, ValueError):
            pass
        client.socket.close()


class _Client:
    """One connection. Any thread may send packets to it."""

    def __init__(self, connection: socket.socket, name: str, server: TcpServer) -> None:
        self.socket, self.name, self._server = connection, name, server
        self.framing: Framing | None = None
        self.lock = threading.Lock()
        self.unsent = bytearray()
        self.broken = False
        self.peer = Peer(name, self, self.send)

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
