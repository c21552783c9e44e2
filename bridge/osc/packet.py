"""OSC packets, parsed as a whole before anything in them takes effect. Truncated or malformed data is a ValueError.

Messages are parsed by python-osc. Its bundle parser is not used: it loops for ever on an element of negative length,
and it skips an element that is neither message nor bundle.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pythonosc.osc_message import OscMessage
from pythonosc.osc_message import ParseError as MessageParseError
from pythonosc.parsing.osc_types import IMMEDIATELY, get_date

from bridge.osc.coalesce import coalesce

#: First bytes of a bundle; its time tag of 8 bytes follows.
BUNDLE_HEADER = b"#bundle\0"
MAX_BUNDLE_DEPTH = 16
_TIME_TAG_BYTES = 8
#: Bytes of an argument, by type tag.
_ARGUMENT_BYTES = dict.fromkeys("ifcrm", 4) | dict.fromkeys("hdt", 8) | dict.fromkeys("TFNI[]", 0)


@dataclass(frozen=True)
class Bundle:
    """Messages and bundles that take effect together, at ``due`` (Unix time in seconds), or at once if it is None.

    ``coalesced`` counts the messages that were dropped because a later one in the bundle overrides them.
    """

    due: float | None
    contents: list[OscMessage | Bundle]
    coalesced: int


def parse_packet(data: bytes, depth: int = 0) -> OscMessage | Bundle:
    """Parse one packet. Raises ValueError if it, or any part of it, is not OSC 1.0."""
    if data.startswith(BUNDLE_HEADER):
        return _parse_bundle(data, depth)
    if not data.startswith(b"/"):
        raise ValueError("it starts with neither / nor #bundle")
    check_arguments(data)
    try:
        return OscMessage(data)
    except (MessageParseError, IndexError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _parse_bundle(data: bytes, depth: int) -> Bundle:
    if depth == MAX_BUNDLE_DEPTH:
        raise ValueError(f"bundles are nested deeper than {MAX_BUNDLE_DEPTH} levels")
    position = len(BUNDLE_HEADER) + _TIME_TAG_BYTES
    if len(data) < position:
        raise ValueError("a bundle is truncated in its time tag")
    date, _ = get_date(data, len(BUNDLE_HEADER))
    elements = []
    while position < len(data):
        (length,) = struct.unpack_from(">i", data, position) if position + 4 <= len(data) else (-1,)
        start, position = position + 4, position + 4 + length
        if length <= 0 or position > len(data):
            raise ValueError(f"a bundle element at byte {start} is truncated")
        elements.append((data[start:position], None))
    remaining = coalesce(elements)
    return Bundle(
        due=None if date == IMMEDIATELY else date,
        contents=[parse_packet(element, depth + 1) for element, _ in remaining],
        coalesced=len(elements) - len(remaining),
    )


def check_arguments(data: bytes) -> None:
    """Check that the arguments fill the message exactly; the parser would read missing bytes as zeros.

    Raises ValueError.
    """
    end = _end_of_string(data, 0)
    if end == len(data):
        return
    tags_end = _end_of_string(data, end)
    tags = data[end:tags_end].split(b"\0")[0].decode("ascii")
    position = tags_end
    for tag in tags[1:]:
        if tag in "sS":
            position = _end_of_string(data, position)
        elif tag == "b":
            (length,) = struct.unpack_from(">i", data, position) if position + 4 <= len(data) else (-1,)
            if length < 0:
                raise ValueError("a blob is truncated")
            position += 4 + (length + 3) // 4 * 4
        elif tag in _ARGUMENT_BYTES:
            position += _ARGUMENT_BYTES[tag]
        else:
            raise ValueError(f"unknown argument type {tag!r}")
    if not tags.startswith(",") or position != len(data):
        raise ValueError("the arguments do not match the length of the message")


def _end_of_string(data: bytes, start: int) -> int:
    """Return the position after the OSC string at ``start`` and its padding."""
    end = data.find(b"\0", start)
    if end < 0:
        raise ValueError("a string is not terminated")
    return (end + 4) // 4 * 4
