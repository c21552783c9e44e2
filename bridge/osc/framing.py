"""Framing of OSC packets in a TCP stream: length prefix (OSC 1.0) or SLIP (OSC 1.1, RFC 1055)."""

from __future__ import annotations

import struct
from typing import Protocol

#: Longest packet, in bytes: a bundle of well over 10,000 messages.
MAX_PACKET_BYTES = 1 << 20
_END, _ESCAPE = 0xC0, 0xDB
_ESCAPED_END, _ESCAPED_ESCAPE = 0xDC, 0xDD


class Framing(Protocol):
    """One connection's framing: ``feed`` splits the bytes that arrive, ``wrap`` frames a packet to send."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that ``data`` completes. Raises ValueError if the stream is malformed."""

    def wrap(self, packet: bytes) -> bytes:
        """Return the packet framed."""


class LengthPrefixed:
    """Each packet after its length, a big-endian 32-bit integer."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that ``data`` completes. Raises ValueError if a length exceeds MAX_PACKET_BYTES."""
        self._buffer += data
        packets = []
        while len(self._buffer) >= 4:
            (length,) = struct.unpack_from(">I", self._buffer)
            if length > MAX_PACKET_BYTES:
                raise ValueError(f"announced packet length of {length} bytes exceeds the limit of {MAX_PACKET_BYTES}")
            if len(self._buffer) < 4 + length:
                break
            packets.append(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return packets

    def wrap(self, packet: bytes) -> bytes:
        """Return the packet after its length."""
        return struct.pack(">I", len(packet)) + packet


class Slip:
    """Each packet between END bytes; END and ESCAPE are escaped inside."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that ``data`` completes. Raises ValueError for an invalid escape or too long a packet."""
        packets = []
        for byte in data:
            if self._escaped:
                if byte not in (_ESCAPED_END, _ESCAPED_ESCAPE):
                    raise ValueError(f"invalid SLIP escape {byte:#04x}")
                self._buffer.append(_END if byte == _ESCAPED_END else _ESCAPE)
                self._escaped = False
            elif byte == _END:
                if self._buffer:
                    packets.append(bytes(self._buffer))
                    self._buffer.clear()
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                self._buffer.append(byte)
            if len(self._buffer) > MAX_PACKET_BYTES:
                raise ValueError(f"a packet is longer than {MAX_PACKET_BYTES} bytes")
        return packets

    def wrap(self, packet: bytes) -> bytes:
        """Return the packet escaped, between END bytes."""
        escaped = packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
        return b"\xc0" + escaped + b"\xc0"


def detect_framing(first_byte: int) -> Framing:
    """Return the framing of a stream that starts with ``first_byte``.

    A length below 2²⁴ starts with zero; SLIP starts with END or with the packet itself.
    """
    return LengthPrefixed() if first_byte == 0 else Slip()
