"""OSC packets as they come, read whole before anything of them is done: what is cut, odd or endless is a ValueError.

The messages are python-osc's. Its reader of bundles is not used: a part of negative length keeps it for ever, and one that is neither
message nor bundle it passes over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pythonosc.osc_message import OscMessage
from pythonosc.osc_message import ParseError as MessageParseError
from pythonosc.parsing.osc_types import IMMEDIATELY, get_date

from bridge.osc.coalesce import latest

#: A bundle's first bytes; its time tag follows. How deep bundles may nest.
HEAD = b"#bundle\0"
DEEPEST = 16
_WIDTHS = {
    "i": 4,
    "f": 4,
    "c": 4,
    "r": 4,
    "m": 4,
    "h": 8,
    "d": 8,
    "t": 8,
    "T": 0,
    "F": 0,
    "N": 0,
    "I": 0,
    "[": 0,
    "]": 0,
}


@dataclass(frozen=True)
class Bundle:
    """What shall be done together: ``due`` in seconds of the clock or None for at once, and how many messages others here ``overrode``."""

    due: float | None
    contents: list[OscMessage | Bundle]
    overrode: int


def read(data: bytes, depth: int = 0) -> OscMessage | Bundle:
    """One packet. Raises ValueError where it, or anything in it, is not OSC 1.0."""
    if data.startswith(HEAD):
        return _bundle(data, depth)
    if not data.startswith(b"/"):
        raise ValueError("it starts with neither / nor #bundle")
    check_arguments(data)
    try:
        return OscMessage(data)
    except (MessageParseError, IndexError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _bundle(data: bytes, depth: int) -> Bundle:
    if depth == DEEPEST:
        raise ValueError(f"its bundles nest deeper than {DEEPEST}")
    place = len(HEAD) + 8
    if len(data) < place:
        raise ValueError("a bundle is cut in its time tag")
    date, _ = get_date(data, len(HEAD))
    parts = []
    while place < len(data):
        (length,) = struct.unpack_from(">i", data, place) if place + 4 <= len(data) else (-1,)
        start, place = place + 4, place + 4 + length
        if length <= 0 or place > len(data):
            raise ValueError(f"a bundle's part at byte {start} is cut")
        parts.append((data[start:place], None))
    kept = latest(parts)
    return Bundle(
        None if date == IMMEDIATELY else date, [read(part, depth + 1) for part, _ in kept], len(parts) - len(kept)
    )


def check_arguments(data: bytes) -> None:
    """Raises ValueError unless the message's arguments fill ``data`` exactly: the parser would make zeros of what is missing."""
    end = _after_text(data, 0)
    if end == len(data):
        return
    tags_end = _after_text(data, end)
    tags = data[end:tags_end].split(b"\0")[0].decode("ascii")
    place = tags_end
    for tag in tags[1:]:
        if tag in "sS":
            place = _after_text(data, place)
        elif tag == "b":
            (length,) = struct.unpack_from(">i", data, place) if place + 4 <= len(data) else (-1,)
            if length < 0:
                raise ValueError("a blob is cut short")
            place += 4 + (length + 3) // 4 * 4
        elif tag in _WIDTHS:
            place += _WIDTHS[tag]
        else:
            raise ValueError(f"the argument type {tag!r} is unknown")
    if not tags.startswith(",") or place != len(data):
        raise ValueError("its arguments do not fill it")


def _after_text(data: bytes, start: int) -> int:
    """Where the OSC string at ``start`` ends, its padding included."""
    end = data.find(b"\0", start)
    if end < 0:
        raise ValueError("a text has no end")
    return (end + 4) // 4 * 4
