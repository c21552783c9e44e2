"""``python -m tests.fuzz.guided TARGET FOLDER SECONDS``: one Atheris search, in a process with instrumented imports."""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["bridge", "engine", "pythonosc", "tomllib"]):
    from tests.fuzz.targets import TARGETS

logging.disable(logging.CRITICAL)
target, folder, seconds = sys.argv[1:4]
limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-print_final_stats=1"]
atheris.Setup([sys.argv[0], folder, *limits], TARGETS[target])
atheris.Fuzz()
