"""``python -m tests.fuzz``: a million OSC packets and a hundred thousand documents, which crash nothing, change nothing, stay nowhere.

``python -m tests.fuzz guided [TARGET …]``: a search by coverage with Atheris; what reaches new code is kept in ``corpus/``.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from engine.shared.table import ROOT, TABLE
from tests.fuzz.targets import CORPUS, READ, TARGETS, bundled, desk, seeds

#: Largest input that is kept, in bytes, and most of them for a target.
LARGEST, MOST = 512, 40


def text(value: str) -> bytes:
    """An OSC string."""
    data = value.encode() + b"\0"
    return data + bytes(-len(data) % 4)


def wrong_packet(rng: random.Random) -> bytes:
    """A packet that sets nothing: its address, its types, its value or its very form is wrong."""
    holds = [parameter for parameter in TABLE.values() if parameter.has_value]
    address = ROOT + rng.choice(holds).name
    number = ROOT + rng.choice([parameter.name for parameter in holds if parameter.kind in ("float", "int")])
    kind = rng.randrange(8)
    if kind == 0:  # no such address
        return text(address + rng.choice("xyz?!") * rng.randrange(1, 9)) + text(",f") + struct.pack(">f", rng.random())
    if kind == 1:  # no number
        return text(number) + text(",f") + struct.pack(">f", rng.choice([float("nan"), float("inf"), -float("inf")]))
    if kind == 2:  # too many
        count = rng.randrange(3, 12)
        return text(address) + text("," + "f" * count) + rng.randbytes(4 * count)
    if kind == 3:  # nonsense where a choice or a number is expected
        other = rng.choice([parameter for parameter in holds if parameter.kind in ("float", "int", "choice", "bool")])
        return (
            text(ROOT + other.name) + text(",s") + text("#" + "".join(rng.choices("abc!?ÄÖ", k=rng.randrange(1, 20))))
        )
    if kind == 4:  # cut off
        whole = text(number) + text(",f") + struct.pack(">f", rng.random())
        return whole[: rng.randrange(0, len(whole) - 4)]
    if kind == 5:  # a bundle that ends in nonsense
        length = rng.choice([-(2**31), 0, 3, 2**31 - 1, rng.randrange(-40, 0)])
        whole = bundled(text(number) + text(",f") + struct.pack(">f", rng.random()))
        return whole + struct.pack(">i", length) + rng.randbytes(rng.randrange(0, 40))
    if kind == 6:  # a bundle with something cut in it
        whole = text(number) + text(",f") + struct.pack(">f", rng.random())
        return bundled(whole, bundled(whole[: -rng.randrange(1, 5)]))
    return bytes(rng.choice([0x00, 0x2C, 0x7F, 0xFF]) for _ in range(4)) + rng.randbytes(rng.randrange(0, 200))  # noise


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A document with a few of its bytes, lines or values changed."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[place % len(out)] = rng.randrange(256)
        elif kind == 1:
            out[place:place] = rng.choice(
                [b'"', b"[", b"]]", b"=", b"\n", b"1e999", b"nan", b"-1", b"9" * 40, b"\xff", b"{}", b"true", b"''"]
            )
        elif kind == 2:
            del out[place : place + rng.randrange(1, 30)]
        elif kind == 3:
            lines = bytes(out).split(b"\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            out = bytearray(b"\n".join(lines))
        else:
            out[place : place + 4] = rng.randbytes(4)
    return bytes(out)


def counted(packets: int, documents: int, seed: int = 1) -> bool:
    """Runs the count and prints what came of it; whether nothing changed and memory stayed flat."""
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    state, control = desk()
    before, process = dict(state.snapshot()), psutil.Process()
    good = True
    makers: list[tuple[str, int, Callable[[], bytes], Callable[[bytes], None]]] = [
        ("OSC packets", packets, lambda: wrong_packet(rng), TARGETS["osc"])
    ]
    for kind in ("preset", "cue", "map"):
        sources = seeds(kind)
        makers.append(
            (
                f"{kind} documents",
                -(-documents // 3),
                lambda sources=sources: mutated(rng.choice(sources), rng),
                TARGETS[kind],
            )
        )
    for name, count, make, take in makers:
        middle, start = 0, time.perf_counter()
        refused, read = state.rejected, READ[0]
        for number in range(count):
            if number == count // 10:
                middle = process.memory_info().rss
            take(make())
        grown = (process.memory_info().rss - middle) / 2**20
        same = dict(state.snapshot()) == before
        good = good and same and grown < 8.0
        told = (
            f", {state.rejected - refused} refused" if name == "OSC packets" else f", {READ[0] - read} still readable"
        )
        values, seconds = "unchanged" if same else "CHANGED", time.perf_counter() - start
        print(
            f"{count} {name}{told}: no crash, values {values}, memory {grown:+.1f} MiB after the first tenth, {seconds:.0f} s",
            flush=True,
        )
    control.close()
    return good


def guided(target: str, seconds: int) -> None:
    """Searches in a process of its own, and keeps the smallest inputs that reach what no other did."""
    found = CORPUS / f"{target}.found"
    found.mkdir(parents=True, exist_ok=True)
    for data in seeds(target):
        (found / hashlib.sha1(data).hexdigest()).write_bytes(data)
    code = subprocess.run([sys.executable, "-m", "tests.fuzz.guided", target, str(found), str(seconds)]).returncode
    kept = CORPUS / target
    kept.mkdir(exist_ok=True)
    small = sorted(
        (path for path in found.iterdir() if path.stat().st_size <= LARGEST),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in small[:MOST]:
        (kept / path.name[:16]).write_bytes(path.read_bytes())
    for path in found.iterdir():
        path.unlink()
    found.rmdir()
    if code:
        sys.exit(f"{target}: the search ended with {code}; what did it lies here as crash-*")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("way", nargs="?", choices=("counted", "guided"), default="counted")
    parser.add_argument("targets", nargs="*", help=f"for guided: {', '.join(TARGETS)}")
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=60, help="for guided: how long each target is searched")
    options = parser.parse_args()
    if options.way == "counted":
        return 0 if counted(options.packets, options.documents) else 1
    for target in options.targets or TARGETS:
        print(f"{target}:", flush=True)
        guided(target, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
