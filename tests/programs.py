"""Stand-ins for programs of a system: shell scripts in a folder that is the whole PATH."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

#: Stand-ins are shell scripts.
needs_shell = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
#: The card that the program finds is this system's.
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
#: Hides the cards that a machine has from torch.
NO_CARD = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def write_program(path: Path, script: str) -> Path:
    """Write an executable shell script; it can use the shell's builtins alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def nvidia_smi(*cards: str, old: bool = False) -> str:
    """Return a script that answers like nvidia-smi; each card is ``name, driver, capability``.

    An ``old`` one rejects the field ``compute_cap`` and leaves the capability out.
    """
    lines = [card.rpartition(",")[0] if old else card for card in cards]
    answer = "\n".join(f'echo "{line}"' for line in lines)
    reject = "*compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;" if old else ""
    return f'case "$*" in {reject} *--query-gpu=name,driver_version*--format=csv,noheader*) {answer};; *) exit 3;; esac'
