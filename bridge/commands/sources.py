"""``phosphene sources``: lists the texture sources that can be opened now."""

from __future__ import annotations

import argparse

from bridge.textures import transports
from engine.shared.text import to_line

HELP = "list the sources that can be opened now"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def main(_options: argparse.Namespace | None = None) -> int:
    """Print one URL per line; return 0."""
    for transport in transports():
        if transport.source is not None and not transport.unavailable_reason():
            for name in transport.names():
                print(to_line(f"{transport.scheme}:{name}"), flush=True)
    return 0
