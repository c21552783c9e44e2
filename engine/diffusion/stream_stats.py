"""What a stream counts for its reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class StreamStats:
    """Denoiser rows of the last tick, and counts of frames.

    ``superseded`` were dropped because a shortened step list overtook them. For ``skipped`` the last output stays: the
    similarity filter skipped them, or they needed no denoiser call.
    """

    rows: int = 0
    superseded: int = 0
    skipped: int = 0
