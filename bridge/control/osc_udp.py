"""OSC over UDP. A flood is read as fast as it comes; of what says the same thing again and again the last one counts."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from bridge.control.osc import OscControl, Peer
from bridge.doors import Doors
from engine.parameters import ROOT, TABLE

log = logging.getLogger(__name__)
#: Bytes that the system may keep for this port, where it lets us; packets that are read before they are looked at.
BUFFER, BATCH = 4 * 1024 * 1024, 4096
LARGEST = 65536
#: What follows the address of a message with one number, float or int.
NUMBERS = (b",f\0\0", b",i\0\0")


class UdpServer:
    """Receives datagrams on a thread of its own and hands them to ``control``. Raises OSError where the port is taken."""

    def __init__(self, control: OscControl, host: str, port: int, doors: Doors | None = None) -> None:
        self._control, self._admits = control, (doors or Doors(host)).admits
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
            self._control.packets += len(came) - len(kept)
            self._control.messages += len(came) - len(kept)
            for data, address in kept:
                self._take(data, address[:2])

    def _waiting(self) -> Iterator[tuple[bytes, tuple[str, int]]]:
        """What has come until now."""
        for _ in range(BATCH):
            try:
                yield self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # Windows tells here that an answer found nobody

    def _take(self, data: bytes, address: tuple[str, int]) -> None:
        try:
            if self._admits(address[0]):
                self._control.packet(data, self._peer(address))
            else:
                self._control.refuse("its network is not let in", f"OSC from {address[0]}")
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


def latest(came: Sequence[tuple[bytes, tuple[str, int]]]) -> Sequence[tuple[bytes, tuple[str, int]]]:
    """``came`` in its order, without the messages that set a parameter to a number and that a later one of the same sender overrides."""
    if len(came) < 2:
        return came
    names = _settable(tuple(TABLE))
    overridden: set[tuple[bytes, tuple[str, int]]] = set()
    kept = []
    for data, address in reversed(came):
        end = data.find(0)
        name = data[:end]
        if name in names and _number(data, (end | 3) + 1):
            if (name, address) in overridden:
                continue
            overridden.add((name, address))
        kept.append((data, address))
    kept.reverse()
    return kept


def _number(data: bytes, start: int) -> bool:
    """Whether one number that is one (no NaN, no infinity) is all that follows the address, from ``start`` on."""
    kind = data[start : start + 4]
    if kind not in NUMBERS or len(data) != start + 8:
        return False
    return kind == NUMBERS[1] or not (data[start + 4] & 0x7F == 0x7F and data[start + 5] & 0x80)


@lru_cache(maxsize=4)
def _settable(names: Iterable[str]) -> frozenset[bytes]:
    """The addresses of parameters that simply take a number."""
    return frozenset((ROOT + name).encode() for name in names if TABLE[name].kind in ("float", "int", "bool") and TABLE[name].holds)
