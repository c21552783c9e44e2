"""Text of exceptions for one-line messages."""

from __future__ import annotations


def first_line(error: BaseException, max_length: int = 400) -> str:
    """Return the first line of the error's text that is not blank, or the name of its class if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:max_length]
