"""Random inputs: OSC packets that must be rejected, and mutations of documents."""

from __future__ import annotations

import random
import struct

from engine.shared.table import ROOT, TABLE
from tests.fuzz.targets import build_bundle


def encode_string(value: str) -> bytes:
    """Return an OSC string."""
    data = value.encode() + b"\0"
    return data + bytes(-len(data) % 4)


def encode_float(address: str, value: float) -> bytes:
    """Return an OSC message with one float."""
    return encode_string(address) + encode_string(",f") + struct.pack(">f", value)


def generate_invalid_packet(rng: random.Random) -> bytes:
    """Return a packet whose address, types, value or layout is invalid."""
    parameters = [parameter for parameter in TABLE.values() if parameter.has_value]
    address = ROOT + rng.choice(parameters).name
    number = ROOT + rng.choice([parameter.name for parameter in parameters if parameter.kind in ("float", "int")])
    kind = rng.randrange(8)
    if kind == 0:  # unknown address
        return encode_float(address + rng.choice("xyz?!") * rng.randrange(1, 9), rng.random())
    if kind == 1:  # not finite
        return encode_float(number, rng.choice([float("nan"), float("inf"), -float("inf")]))
    if kind == 2:  # too many arguments
        count = rng.randrange(3, 12)
        return encode_string(address) + encode_string("," + "f" * count) + rng.randbytes(4 * count)
    if kind == 3:  # text for a choice or a number
        parameter = rng.choice([p for p in parameters if p.kind in ("float", "int", "choice", "bool")])
        text = "#" + "".join(rng.choices("abc!?ÄÖ", k=rng.randrange(1, 20)))
        return encode_string(ROOT + parameter.name) + encode_string(",s") + encode_string(text)
    message = encode_float(number, rng.random())
    if kind == 4:  # truncated message
        return message[: rng.randrange(0, len(message) - 4)]
    if kind == 5:  # bundle with a garbage element
        length = rng.choice([-(2**31), 0, 3, 2**31 - 1, rng.randrange(-40, 0)])
        return build_bundle(message) + struct.pack(">i", length) + rng.randbytes(rng.randrange(0, 40))
    if kind == 6:  # bundle with a truncated message
        return build_bundle(message, build_bundle(message[: -rng.randrange(1, 5)]))
    return bytes(rng.choice([0x00, 0x2C, 0x7F, 0xFF]) for _ in range(4)) + rng.randbytes(rng.randrange(0, 200))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a document with a few bytes, lines or values changed."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        position = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[position % len(out)] = rng.randrange(256)
        elif kind == 1:
            out[position:position] = rng.choice(
                [b'"', b"[", b"]]", b"=", b"\n", b"1e999", b"nan", b"-1", b"9" * 40, b"\xff", b"{}", b"true", b"''"]
            )
        elif kind == 2:
            del out[position : position + rng.randrange(1, 30)]
        elif kind == 3:
            lines = bytes(out).split(b"\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            out = bytearray(b"\n".join(lines))
        else:
            out[position : position + 4] = rng.randbytes(4)
    return bytes(out)
