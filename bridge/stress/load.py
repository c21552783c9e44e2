"""``phosphene floods``: a show of its own under more than any desk sends; how even its frames stay, and how soon a hand is felt.

``python -m bridge.stress.load KIND UDP-PORT TCP-PORT HTTP-PORT SECONDS`` is the other side of one flood, a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import psutil

from bridge.commands.options import engine_options
from bridge.errors import UserError
from bridge.osc.tcp import TcpServer
from bridge.panel.server import PanelServer
from bridge.stress.harness import StressShow
from engine.shared.parameter import Value
from engine.shared.table import ROOT

#: What every flood turns, what it is left at, and what the hand beside it turns.
TURNED, LEFT, FELT = "/master", 0.875, "/output/hue"


def message(name: str, value: float) -> bytes:
    """An OSC message with one number."""
    address = (ROOT + name).encode() + b"\0"
    return address + bytes(-len(address) % 4) + b",f\0\0" + struct.pack(">f", value)


def bundle(packets: list[bytes]) -> bytes:
    """An OSC bundle for now."""
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(struct.pack(">i", len(packet)) + packet for packet in packets)


def _osc(rate: float) -> Callable[[int, int, int, float], None]:
    def send(osc: int, _tcp: int, _http: int, seconds: float) -> None:
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.connect(("127.0.0.1", osc))
        packets = [message(TURNED, 0.5 + i / 2048) for i in range(1024)]
        start, sent = time.monotonic(), 0
        while (passed := time.monotonic() - start) < seconds:
            while sent < passed * rate:
                with contextlib.suppress(OSError):
                    port.send(packets[sent % 1024])
                sent += 1
            time.sleep(0.001)

    return send


def _bundles(osc: int, tcp: int, _http: int, seconds: float) -> None:
    """Bundles of 10,000 over TCP, one after another; as many as one datagram holds over UDP beside them."""
    big = bundle([message(TURNED, 0.5 + i / 20000) for i in range(10_000)])
    small = bundle([message(TURNED, 0.25)] * 1400)
    end = time.monotonic() + seconds
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.create_connection(("127.0.0.1", tcp)) as port:
        while time.monotonic() < end:
            port.sendall(struct.pack(">i", len(big)) + big)
            udp.sendto(small, ("127.0.0.1", osc))
            time.sleep(0.5)


def _clients(_osc: int, tcp: int, _http: int, seconds: float) -> None:
    """A hundred clients over TCP, each of which sends a hundred messages a second."""
    ports = [socket.create_connection(("127.0.0.1", tcp)) for _ in range(100)]
    packets = [message(TURNED, i / 1024) for i in range(1024)]
    framed = [struct.pack(">i", len(packet)) + packet for packet in packets]
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for port in ports:
            port.sendall(framed[turn % 1024])
        turn += 1
        time.sleep(0.008)


def _slow(_osc: int, _tcp: int, http: int, seconds: float) -> None:
    """Two hundred that ask for a page a byte at a time, and never end."""
    ports: list[socket.socket] = []
    end, place = time.monotonic() + seconds, 0
    text = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: " + b"y" * 4000
    while time.monotonic() < end:
        while len(ports) < 200:
            with contextlib.suppress(OSError):
                ports.append(socket.create_connection(("127.0.0.1", http), 1.0))
        for port in list(ports):
            try:
                port.send(text[place % len(text) : place % len(text) + 1])
            except OSError:
                ports.remove(port)
        place += 1
        time.sleep(0.1)


def _malformed(_osc: int, _tcp: int, http: int, seconds: float) -> None:
    """Requests and WebSocket frames that are none."""
    rng = random.Random(1)
    upgrade = (
        b"GET /panel HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n" % http
    )
    ways: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(1, 3000)),
        lambda: b"GET " + b"/a" * rng.randrange(1, 30000) + b" HTTP/1.1\r\n\r\n",
        lambda: b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
        lambda: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
        lambda: upgrade + rng.randbytes(rng.randrange(2, 2000)),
        lambda: upgrade + b"\x81\xff" + struct.pack(">Q", 2**62) + b"\0" * 4,
        lambda: upgrade + b"\x81\xfe" + struct.pack(">H", 60000) + b"\0" * 4 + b"{" * 60000,
    ]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", http), 1.0) as port:
            port.settimeout(0.05)
            port.sendall(rng.choice(ways)())
            port.recv(4096)


def _panels(_osc: int, _tcp: int, http: int, seconds: float) -> None:
    """Eight panels, each with its WebSocket and both films."""
    import aiohttp

    async def film(session: aiohttp.ClientSession, what: str) -> None:
        async with session.get(f"http://127.0.0.1:{http}/{what}.mjpg") as answer:
            async for _ in answer.content.iter_any():
                pass

    async def talk(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{http}/panel", max_msg_size=0) as panel:
            async for _ in panel:
                pass

    async def watch() -> None:
        timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            work = [talk(session) for _ in range(8)] + [
                film(session, what) for _ in range(8) for what in ("input", "output")
            ]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*work), seconds)

    asyncio.run(watch())


def _nobody(_osc: int, _tcp: int, _http: int, seconds: float) -> None:
    time.sleep(seconds)


FLOODS: Mapping[str, Callable[[int, int, int, float], None]] = {
    "nobody": _nobody,
    "20,000 OSC messages a second": _osc(20_000),
    "bundles of 10,000 messages": _bundles,
    "100 TCP clients": _clients,
    "200 that send a byte at a time": _slow,
    "malformed HTTP and WebSocket": _malformed,
    "8 panels": _panels,
}


class Hand:
    """Turns a parameter twenty times a second from outside, and takes the time until it is set."""

    def __init__(self, rehearsal: StressShow) -> None:
        self.seconds: list[float] = []
        self.missed = 0
        self._rehearsal, self._stop, self._felt = rehearsal, threading.Event(), threading.Event()
        self._port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        rehearsal.state.on_set(self._note)
        self._thread = threading.Thread(target=self._run, name="hand", daemon=True)
        self._thread.start()

    def _note(self, names: frozenset[str], _by: str) -> None:
        if FELT in names:
            self._felt.set()

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(0.05):
            turn += 1
            self._felt.clear()
            start = time.monotonic()
            self._port.sendto(message(FELT, float(turn % 170)), ("127.0.0.1", self._rehearsal.osc.port))
            if self._felt.wait(1.0):
                self.seconds.append(time.monotonic() - start)
            else:
                self.missed += 1

    def close(self) -> None:
        """Lets go."""
        self._stop.set()
        self._thread.join(3)
        self._port.close()


def floods(options: argparse.Namespace, values: Mapping[str, Value]) -> int:
    """Prints the table; 1 where a frame came late, a value was lost, or memory grew."""
    if options.seconds < 1:
        raise UserError("--seconds takes 1 or more")
    print(
        "| Flood | Messages taken | Longest gap | New frames a second | A hand is felt after (p50, p99) | Memory | Last value |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    good = True
    with StressShow(engine_options(options), values, recording=False) as rehearsal:
        tcp = TcpServer(rehearsal.show.osc, "127.0.0.1", 0)
        panel = PanelServer(rehearsal.show, "127.0.0.1", 0, rehearsal.osc.port)
        try:
            for name in FLOODS:
                good = _flooded(rehearsal, tcp.port, panel.port, name, options.seconds) and good
        finally:
            panel.close()
            tcp.close()
    print(
        f"\nno gap above 150 ms, a hand felt within 100 ms, memory within 64 MiB, the last value set: {'held' if good else 'missed'}"
    )
    return 0 if good else 1


def _flooded(rehearsal: StressShow, tcp: int, http: int, name: str, seconds: float) -> bool:
    process = psutil.Process()
    before, taken = process.memory_info().rss, rehearsal.show.osc.messages
    command = [sys.executable, "-m", "bridge.stress.load", name, *map(str, (rehearsal.osc.port, tcp, http, seconds))]
    other = subprocess.Popen(command)
    time.sleep(1.0)  # until it has begun
    begun, hand = time.monotonic(), Hand(rehearsal)
    other.wait(seconds + 60)
    hand.close()
    ended = time.monotonic()
    count = -1
    while rehearsal.show.osc.messages != count:  # what is still under way
        count = rehearsal.show.osc.messages
        time.sleep(0.3)
    gap, rate = rehearsal.audience.gap(begun), rehearsal.audience.fresh(begun) / (ended - begun)
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.sendto(message(TURNED, LEFT), ("127.0.0.1", rehearsal.osc.port))
    port.close()
    end = time.monotonic() + 1.0
    while rehearsal.state.snapshot().real(TURNED) != LEFT and time.monotonic() < end:
        time.sleep(0.005)
    won = rehearsal.state.snapshot().real(TURNED) == LEFT
    p50, p99 = np.percentile(hand.seconds or [9.9], (50, 99)) * 1000
    grown = (process.memory_info().rss - before) / 2**20
    lost = f", {hand.missed} lost" if hand.missed else ""
    row = (
        f"{rehearsal.show.osc.messages - taken}",
        f"{gap * 1000:.0f} ms",
        f"{rate:.1f}",
        f"{p50:.1f} ms, {p99:.1f} ms{lost}",
        f"{grown:+.1f} MiB",
        "set" if won else "NOT SET",
    )
    print(f"| {name} | {' | '.join(row)} |", flush=True)
    return gap <= 0.15 and p99 <= 100 and grown < 64 and won


if __name__ == "__main__":
    udp_port, tcp_port, http_port = map(int, sys.argv[2:5])
    FLOODS[sys.argv[1]](udp_port, tcp_port, http_port, float(sys.argv[5]))
