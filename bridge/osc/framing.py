"""How OSC packets lie in a TCP stream: each after its length (OSC 1.0), or between END bytes (OSC 1.1, SLIP as in RFC 1055)."""

from __future__ import annotations

import struct
from typing import Protocol

#: Longest packet, in bytes: a bundle of well over 10,000 messages.
LONGEST = 1 << 20
_END, _ESCAPE = 0xC0, 0xDB
_ESCAPED_END, _ESCAPED_ESCAPE = 0xDC, 0xDD


class Framing(Protocol):
    """One direction each: ``feed`` takes bytes as they come and gives the packets that are whole, ``wrap`` makes one ready to send."""

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ValueError for what can be no stream of packets."""

    def wrap(self, packet: bytes) -> bytes: ...


class LengthPrefixed:
    """Each packet after its length as four bytes, the highest first."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._held += data
        packets = []
        while len(self._held) >= 4:
            (length,) = struct.unpack_from(">I", self._held)
            if length > LONGEST:
                raise ValueError(f"a packet of {length} bytes is announced, more than {LONGEST}")
            if len(self._held) < 4 + length:
                break
            packets.append(bytes(self._held[4 : 4 + length]))
            del self._held[: 4 + length]
        return packets

    def wrap(self, packet: bytes) -> bytes:
        return struct.pack(">I", len(packet)) + packet


class Slip:
    """Each packet between END bytes, with the two special bytes escaped inside."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        packets = []
        for byte in data:
            if self._escaped:
                if byte not in (_ESCAPED_END, _ESCAPED_ESCAPE):
                    raise ValueError(f"the byte {byte:#04x} follows an escape")
                self._held.append(_END if byte == _ESCAPED_END else _ESCAPE)
                self._escaped = False
            elif byte == _END:
                if self._held:
                    packets.append(bytes(self._held))
                    self._held.clear()
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                self._held.append(byte)
            if len(self._held) > LONGEST:
                raise ValueError(f"a packet is longer than {LONGEST} bytes")
        return packets

    def wrap(self, packet: bytes) -> bytes:
        escaped = packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
        return b"\xc0" + escaped + b"\xc0"


def framing_of(first: int) -> Framing:
    """The framing of a stream by its first byte: a length below 2²⁴ begins with nought, SLIP with END or with the packet itself."""
    return LengthPrefixed() if first == 0 else Slip()
