"""DMX over the network, Art-Net and sACN.

Each channel that changes sends its value (0–255) to the address ``/dmx/UNIVERSE/CHANNEL``. Channels count from 1.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from bridge.control.mapping import ControllerMap
from bridge.network.listen import bind_udp
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
ARTNET_PORT, SACN_PORT = 6454, 5568
#: Length of an ArtDmx packet before its values.
ARTDMX_HEADER_BYTES = 18
MAX_CHANNELS = 512
MAX_DATAGRAM_BYTES = 65536
#: Longest wait for a packet, and the pause after a failure, in seconds.
WAIT_SECONDS, RETRY_SECONDS = 0.2, 0.05


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
        self._dmx, self._socket = dmx, bind_udp(host, port)
        self._socket.settimeout(WAIT_SECONDS)
        self.port: int = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="art-net", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(2)
        self._socket.close()

    def _run(self) -> None:
        limit = RateLimit()
        while not self._stop.is_set():
            try:
                data, address = self._socket.recvfrom(MAX_DATAGRAM_BYTES)
                packet = parse_artdmx(data)
                if packet is not None:
                    self._dmx.handle(*packet, f"Art-Net from {address[0]}")
            except TimeoutError:
                pass
            except Exception:  # one packet, or a network that goes, must not end the thread
                if limit.passes()[0]:
                    log.exception("an Art-Net packet could not be handled")
                self._stop.wait(RETRY_SECONDS)


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
            self._receiver: Any = _open_sacn(host)
        except ImportError:
            raise OSError("sACN needs sacn; pip install 'phosphene[desks]'") from None
        self._receiver.start()
        for universe in universes:
            self._receiver.register_listener(
                "universe", lambda packet: dmx.handle(packet.universe, packet.dmxData, "sACN"), universe=universe
            )

    def close(self) -> None:
        """Stop listening."""
        self._receiver.stop()


def _open_sacn(host: str, port: int = SACN_PORT) -> Any:
    """Return the package's receiver with a loop of ours: the package's own ends at the first malformed packet.

    Raises ImportError, OSError.
    """
    import sacn
    from sacn.receiving.receiver_socket_udp import ReceiverSocketUDP

    class Socket(ReceiverSocketUDP):  # type: ignore[misc, unused-ignore]
        def receive_loop(self) -> None:
            limit = RateLimit()
            self._socket.settimeout(WAIT_SECONDS)
            self._enabled_flag = True
            while self._enabled_flag:
                try:
                    self._listener.on_periodic_callback(time.time())
                    self._listener.on_data(list(self._socket.recv(MAX_DATAGRAM_BYTES)), time.time())
                except (TimeoutError, ValueError):
                    pass  # nothing came, or a value or name that E1.31 does not permit
                except Exception:  # one packet, or a network that goes, must not end the thread
                    if limit.passes()[0]:
                        log.exception("an sACN packet could not be handled")
                    time.sleep(RETRY_SECONDS)

    receiving = Socket(None, host, port)
    receiver = sacn.sACNreceiver(socket=receiving)
    receiving._listener = receiver._handler
    return receiver
