"""DMX over the network, Art-Net and sACN.

Each channel that changes sends its value (0–255) to the address ``/dmx/UNIVERSE/CHANNEL``. Channels count from 1.
"""

from __future__ import annotations

import logging
import socketserver
import struct
import threading
from collections.abc import Sequence
from typing import Any

from bridge.control.mapping import ControllerMap

log = logging.getLogger(__name__)
ARTNET_PORT = 6454
#: Length of an ArtDmx packet before its values.
ARTDMX_HEADER_BYTES = 18
MAX_CHANNELS = 512


class Dmx:
    """The last values of each universe. Changes go to the controller map."""

    def __init__(self, controllers: ControllerMap) -> None:
        self._controllers = controllers
        self._lock = threading.Lock()
        self._universes: dict[int, bytes] = {}
        self.packets = 0

    def handle(self, universe: int, data: Sequence[int], origin: str) -> None:
        """Handle the values of channels 1 upward. The first packet of a universe is its present state, not a change."""
        values = bytes(max(0, min(255, int(value))) for value in data[:MAX_CHANNELS])
        with self._lock:
            self.packets += 1
            previous, self._universes[universe] = self._universes.get(universe), values
        if previous is None:
            return
        for channel, value in enumerate(values, 1):
            if channel > len(previous) or previous[channel - 1] != value:
                self._controllers.handle(f"/dmx/{universe}/{channel}", [value], origin)


class ArtNet:
    """Art-Net's UDP port on ``host``. Raises OSError if it cannot be bound.

    The packets are parsed here: the Python package for Art-Net listens on every network, and ends at the first
    truncated packet.
    """

    def __init__(self, dmx: Dmx, host: str, port: int = ARTNET_PORT) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                packet = parse_artdmx(self.request[0])
                if packet is not None:
                    dmx.handle(*packet, f"Art-Net from {self.client_address[0]}")

        self._server = socketserver.UDPServer((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="art-net", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


def parse_artdmx(data: bytes) -> tuple[int, bytes] | None:
    """Return universe (net, sub-net and universe as one number) and values of an ArtDmx packet; None for any other.

    The layout is Art-Net 4's.
    """
    if len(data) < ARTDMX_HEADER_BYTES or data[:8] != b"Art-Net\0" or data[8:10] != b"\x00\x50":
        return None
    (universe,), (length,) = struct.unpack_from("<H", data, 14), struct.unpack_from(">H", data, 16)
    values = data[ARTDMX_HEADER_BYTES : ARTDMX_HEADER_BYTES + length]
    return (universe & 0x7FFF, values) if 2 <= length <= MAX_CHANNELS and len(values) == length else None


class Sacn:
    """sACN (E1.31), through the package sacn. Raises OSError if it is not installed or the port cannot be bound."""

    def __init__(self, dmx: Dmx, universes: Sequence[int], host: str) -> None:
        try:
            import sacn
        except ImportError:
            raise OSError("sACN needs sacn; pip install 'phosphene[desks]'") from None
        self._receiver: Any = sacn.sACNreceiver(bind_address=host)
        self._receiver.start()
        for universe in universes:
            self._receiver.register_listener(
                "universe", lambda packet: dmx.handle(packet.universe, packet.dmxData, "sACN"), universe=universe
            )

    def close(self) -> None:
        """Stop listening."""
        self._receiver.stop()
