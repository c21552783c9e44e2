"""``python -m tests.fuzz``: a million invalid OSC packets and a hundred thousand mutated documents.

None may crash a parser, change a value or leak memory. ``python -m tests.fuzz guided [TARGET …]`` searches by coverage
with Atheris, and saves the inputs that reach new code in ``corpus/``.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.fuzz.generate import generate_invalid_packet, mutate
from tests.fuzz.targets import ACCEPTED, CORPUS, DOCUMENTS, TARGETS, load_seeds, osc_control

#: Limits of what a search adds to the corpus of a target.
MAX_CORPUS_FILE_BYTES, MAX_CORPUS_FILES = 512, 40
MAX_MEMORY_GROWTH_MIB = 8.0


def fuzz_randomly(packets: int, documents: int, seed: int = 1) -> bool:
    """Feed random inputs to the parsers and print the outcome.

    Return whether every packet left the values unchanged and memory stayed flat.
    """
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    state, control = osc_control()
    before, process = dict(state.snapshot()), psutil.Process()
    passed = True
    runs: list[tuple[str, int, Callable[[], bytes], Callable[[bytes], None]]] = [
        ("OSC packets", packets, lambda: generate_invalid_packet(rng), TARGETS["osc_packet"])
    ]
    for name in DOCUMENTS:
        seeds = load_seeds(name)
        count = -(-documents // len(DOCUMENTS))
        title = f"{name.replace('_', ' ')} documents"
        runs.append((title, count, lambda seeds=seeds: mutate(rng.choice(seeds), rng), TARGETS[name]))
    for title, count, generate, target in runs:
        first_tenth, start = 0, time.perf_counter()
        rejected, accepted = state.rejected, ACCEPTED[0]
        for number in range(count):
            if number == count // 10:
                first_tenth = process.memory_info().rss
            target(generate())
        growth = (process.memory_info().rss - first_tenth) / 2**20
        unchanged = dict(state.snapshot()) == before
        passed = passed and unchanged and growth < MAX_MEMORY_GROWTH_MIB
        outcome = f"{ACCEPTED[0] - accepted} still readable"
        if target is TARGETS["osc_packet"]:
            outcome = f"{state.rejected - rejected} rejected"
        values, seconds = "unchanged" if unchanged else "CHANGED", time.perf_counter() - start
        print(
            f"{count} {title}, {outcome}: no crash, values {values}, "
            f"memory {growth:+.1f} MiB after the first tenth, {seconds:.0f} s",
            flush=True,
        )
    control.close()
    return passed


def fuzz_by_coverage(target: str, seconds: int) -> None:
    """Search in another process, and add the newest small inputs that reached new code to the corpus."""
    corpus = CORPUS / target
    corpus.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for data in load_seeds(target):
            (Path(folder) / hashlib.sha1(data).hexdigest()).write_bytes(data)
        code = subprocess.run([sys.executable, "-m", "tests.fuzz.guided", target, folder, str(seconds)]).returncode
        small = [path for path in Path(folder).iterdir() if path.stat().st_size <= MAX_CORPUS_FILE_BYTES]
        small.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in small[:MAX_CORPUS_FILES]:
            (corpus / path.name[:16]).write_bytes(path.read_bytes())
    if code:
        sys.exit(f"{target}: the search ended with code {code}; the input that caused it is here as crash-*")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("method", nargs="?", choices=("random", "guided"), default="random")
    parser.add_argument("targets", nargs="*", help=f"targets of guided (default: {', '.join(TARGETS)})")
    parser.add_argument("--packets", type=int, default=1_000_000, help="OSC packets of random (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=100_000, help="documents of random (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="time per target of guided (default: %(default)s)")
    options = parser.parse_args()
    if options.method == "random":
        return 0 if fuzz_randomly(options.packets, options.documents) else 1
    for target in options.targets or TARGETS:
        print(f"{target}:", flush=True)
        fuzz_by_coverage(target, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
