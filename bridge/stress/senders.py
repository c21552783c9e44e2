"""The senders of the load test, one per kind of load.

``python -m bridge.stress.senders LOAD UDP-PORT TCP-PORT HTTP-PORT SECONDS`` runs one of them in its own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.shared.table import ROOT

#: The parameter that every load changes.
LOADED_PARAMETER = "/master"
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The show's ports on the loopback."""

    udp: int
    tcp: int
    http: int


#: Sends one kind of load to the ports, for so many seconds.
Sender = Callable[[Ports, float], None]


def message(name: str, value: float) -> bytes:
    """Return an OSC message with one float."""
    address = (ROOT + name).encode() + b"\0"
    return address + bytes(-len(address) % 4) + b",f\0\0" + struct.pack(">f", value)


def bundle(packets: list[bytes]) -> bytes:
    """Return an OSC bundle to be handled at once."""
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(map(add_length, packets))


def add_length(packet: bytes) -> bytes:
    """Return ``packet`` after its length, as bundles and OSC over TCP have it."""
    return struct.pack(">i", len(packet)) + packet


def send_messages(rate: float) -> Sender:
    """Send ``rate`` messages a second over UDP."""

    def send(ports: Ports, seconds: float) -> None:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect((LOCALHOST, ports.udp))
        packets = [message(LOADED_PARAMETER, 0.5 + i / 2048) for i in range(1024)]
        start, sent = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            while sent < elapsed * rate:
                with contextlib.suppress(OSError):
                    udp.send(packets[sent % 1024])
                sent += 1
            time.sleep(0.001)

    return send


def send_bundles(ports: Ports, seconds: float) -> None:
    """Send bundles of 10,000 messages over TCP, and the largest that fit into a datagram over UDP."""
    large = bundle([message(LOADED_PARAMETER, 0.5 + i / 20000) for i in range(10_000)])
    small = bundle([message(LOADED_PARAMETER, 0.25)] * 1400)
    end = time.perf_counter() + seconds
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.create_connection((LOCALHOST, ports.tcp)) as tcp:
        while time.perf_counter() < end:
            tcp.sendall(add_length(large))
            udp.sendto(small, (LOCALHOST, ports.udp))
            time.sleep(0.5)


def send_from_many_clients(ports: Ports, seconds: float) -> None:
    """Connect 100 clients over TCP; each sends 100 messages a second."""
    clients = [socket.create_connection((LOCALHOST, ports.tcp)) for _ in range(100)]
    packets = [add_length(message(LOADED_PARAMETER, i / 1024)) for i in range(1024)]
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for client in clients:
            client.sendall(packets[turn % 1024])
        turn += 1
        time.sleep(0.008)


def send_slow_requests(ports: Ports, seconds: float) -> None:
    """Hold 200 HTTP connections that send a request one byte at a time, without an end."""
    clients: list[socket.socket] = []
    end, position = time.perf_counter() + seconds, 0
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: " + b"y" * 4000
    while time.perf_counter() < end:
        while len(clients) < 200:
            with contextlib.suppress(OSError):
                clients.append(socket.create_connection((LOCALHOST, ports.http), 1.0))
        for client in list(clients):
            try:
                client.send(request[position % len(request) :][:1])
            except OSError:
                clients.remove(client)
        position += 1
        time.sleep(0.1)


def send_malformed_requests(ports: Ports, seconds: float) -> None:
    """Send malformed HTTP requests and WebSocket frames."""
    rng = random.Random(1)
    upgrade = (
        b"GET /panel HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n" % ports.http
    )
    requests: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(1, 3000)),
        lambda: b"GET " + b"/a" * rng.randrange(1, 30000) + b" HTTP/1.1\r\n\r\n",
        lambda: b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
        lambda: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
        lambda: upgrade + rng.randbytes(rng.randrange(2, 2000)),
        lambda: upgrade + b"\x81\xff" + struct.pack(">Q", 2**62) + b"\0" * 4,
        lambda: upgrade + b"\x81\xfe" + struct.pack(">H", 60000) + b"\0" * 4 + b"{" * 60000,
    ]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, ports.http), 1.0) as client:
            client.settimeout(0.05)
            client.sendall(rng.choice(requests)())
            client.recv(4096)


def open_panels(ports: Ports, seconds: float) -> None:
    """Open eight panels, each with its WebSocket and both video streams."""
    import aiohttp

    root = f"http://{LOCALHOST}:{ports.http}"

    async def read_video(session: aiohttp.ClientSession, name: str) -> None:
        async with session.get(f"{root}/{name}.mjpg") as answer:
            async for _ in answer.content.iter_any():
                pass

    async def read_messages(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{root}/panel", max_msg_size=0) as panel:
            async for _ in panel:
                pass

    async def watch() -> None:
        timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            tasks = [read_messages(session) for _ in range(8)]
            tasks += [read_video(session, name) for _ in range(8) for name in ("input", "output")]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*tasks), seconds)

    asyncio.run(watch())


def send_nothing(_ports: Ports, seconds: float) -> None:
    """Wait: the baseline."""
    time.sleep(seconds)


SENDERS: Mapping[str, Sender] = {
    "baseline": send_nothing,
    "20,000 OSC messages per second": send_messages(20_000),
    "bundles of 10,000 messages": send_bundles,
    "100 TCP clients": send_from_many_clients,
    "200 clients sending byte by byte": send_slow_requests,
    "malformed HTTP and WebSocket": send_malformed_requests,
    "8 panels": open_panels,
}

if __name__ == "__main__":
    SENDERS[sys.argv[1]](Ports(*map(int, sys.argv[2:5])), float(sys.argv[5]))
