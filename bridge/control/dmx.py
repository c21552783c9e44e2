"""DMX over the network, Art-Net and sACN: each channel that changes becomes ``/dmx/UNIVERSE/CHANNEL`` (0–255), channels from 1."""

from __future__ import annotations

import logging
import socketserver
import struct
import threading
from collections.abc import Sequence
from typing import Any

from bridge.control.mapping import ControllerMap

log = logging.getLogger(__name__)
#: Art-Net's port, and the bytes of an ArtDmx packet before its values.
PORT, HEADER = 6454, 18


class Dmx:
    """Universes as they were last seen; what comes in is told to the desk maps where it changed."""

    def __init__(self, desks: ControllerMap) -> None:
        self._desks = desks
        self._lock = threading.Lock()
        self._seen: dict[int, bytes] = {}
        self.packets = 0

    def take(self, universe: int, data: Sequence[int], origin: str) -> None:
        """One packet: the values of channels 1 upward. The first of a universe is where it stands, not a change."""
        new = bytes(max(0, min(255, int(value))) for value in data[:512])
        with self._lock:
            self.packets += 1
            old, self._seen[universe] = self._seen.get(universe), new
        if old is None:
            return
        for channel, value in enumerate(new, 1):
            if channel > len(old) or old[channel - 1] != value:
                self._desks.handle(f"/dmx/{universe}/{channel}", [value], origin)


class ArtNet:
    """Art-Net's UDP port on ``host``. Raises OSError where it cannot be used.

    Read here: the package for it listens on every network, and ends at the first packet that is cut short.
    """

    def __init__(self, dmx: Dmx, host: str, port: int = PORT) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                packet = artdmx(self.request[0])
                if packet is not None:
                    dmx.take(*packet, f"Art-Net from {self.client_address[0]}")

        self._server = socketserver.UDPServer((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="art-net", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


def artdmx(data: bytes) -> tuple[int, bytes] | None:
    """Universe (net, sub-net and universe as one number) and values of an ArtDmx packet, by Art-Net 4; None for any other."""
    if len(data) < HEADER or data[:8] != b"Art-Net\0" or data[8:10] != b"\x00\x50":
        return None
    (universe,), (length,) = struct.unpack_from("<H", data, 14), struct.unpack_from(">H", data, 16)
    values = data[HEADER : HEADER + length]
    return (universe & 0x7FFF, values) if 2 <= length <= 512 and len(values) == length else None


class Sacn:
    """sACN (E1.31), by the sacn package. Raises OSError where it cannot be used."""

    def __init__(self, dmx: Dmx, universes: Sequence[int], host: str) -> None:
        try:
            import sacn
        except ImportError:
            raise OSError("sACN needs sacn; pip install 'phosphene[desks]'") from None
        self._receiver: Any = sacn.sACNreceiver(bind_address=host)
        self._receiver.start()
        for universe in universes:
            self._receiver.register_listener(
                "universe", lambda packet: dmx.take(packet.universe, packet.dmxData, "sACN"), universe=universe
            )

    def close(self) -> None:
        """Stops listening."""
        self._receiver.stop()
