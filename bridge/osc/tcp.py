"""OSC over TCP, both framings, told apart by their first byte. One thread for all clients; none can make another wait."""

from __future__ import annotations

import logging
import selectors
import socket
import threading

from bridge.network.access import AccessPolicy
from bridge.osc.dispatch import OscControl, Peer
from bridge.osc.framing import Framing, framing_of

log = logging.getLogger(__name__)
#: Most clients at once, bytes read in one go, and bytes that may wait to be sent to one that does not read.
MOST, CHUNK, WAITING = 128, 65536, 1 << 20


class TcpServer:
    """Listens on ``host``:``port`` and hands packets to ``control``. Raises OSError where the port is taken."""

    def __init__(self, control: OscControl, host: str, port: int, doors: AccessPolicy | None = None) -> None:
        self._control, self._doors = control, doors or AccessPolicy(host)
        self._listener = socket.create_server((host, port), backlog=64)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self.clients: set[_Client] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osc-tcp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hangs up on everyone."""
        self._stop.set()
        self.wake()
        self._thread.join(2)
        for client in list(self.clients):
            self._end(client)
        for end in (self._listener, self._woken, self._waker):
            end.close()
        self._selector.close()

    def wake(self) -> None:
        """Lets the thread see that something waits to be sent."""
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # it is awake, or gone

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, events in self._selector.select(0.5):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                else:
                    client: _Client = key.data
                    if events & selectors.EVENT_READ:
                        self._read(client)
                    if events & selectors.EVENT_WRITE and client in self.clients:
                        self._write(client)
            for client in list(self.clients):
                if client.broken:
                    self._end(client)
                else:
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.waiting else 0)
                    self._selector.modify(client.socket, wanted, client)

    def _accept(self) -> None:
        try:
            made, address = self._listener.accept()
        except OSError:
            return
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(made, f"OSC over TCP from {address[0]}", self)
        admitted = self._doors.admits(address[0])
        if not admitted or len(self.clients) >= MOST:
            self._control.refuse(
                f"more than {MOST} clients at once" if admitted else "its network is not let in", client.name
            )
            made.close()
            return
        self.clients.add(client)
        self._selector.register(made, selectors.EVENT_READ, client)

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(client)
            return
        try:
            if client.framing is None:
                client.framing = framing_of(data[0])
            packets = client.framing.feed(data)
        except ValueError as error:
            self._control.refuse(f"{error}; hung up", client.name)
            self._end(client)
            return
        for packet in packets:
            self._control.packet(packet, client.peer)

    def _write(self, client: _Client) -> None:
        with client.lock:
            try:
                sent = client.socket.send(client.waiting)
                del client.waiting[:sent]
            except BlockingIOError:
                pass
            except OSError:
                client.broken = True

    def _end(self, client: _Client) -> None:
        self._control.gone(client.peer)
        self.clients.discard(client)
        try:
            self._selector.unregister(client.socket)
        except (KeyError, ValueError):
            pass
        client.socket.close()


class _Client:
    """One connection. Packets may be sent to it from any thread."""

    def __init__(self, made: socket.socket, name: str, server: TcpServer) -> None:
        self.socket, self.name, self._server = made, name, server
        self.framing: Framing | None = None
        self.lock = threading.Lock()
        self.waiting = bytearray()
        self.broken = False
        self.peer = Peer(name, self, self.send)

    def send(self, packet: bytes) -> None:
        """Queues a packet. Raises OSError for a client that does not read."""
        framing = self.framing
        if framing is None:
            return
        with self.lock:
            if len(self.waiting) > WAITING:
                self.broken = True
                raise OSError("it does not read")
            self.waiting += framing.wrap(packet)
        self._server.wake()
