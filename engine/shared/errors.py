"""Text of exceptions for one-line messages."""

from __future__ import annotations

from engine.shared.text import to_line


def first_line(error: BaseException, max_length: int = 400) -> str:
    """Return the first line of the error's text that is not blank, or the name of its class if there is none.

    The result is valid Unicode without control characters, whatever the text holds.
    """
    try:
        lines = [line.strip() for line in str(error).splitlines()]
    except Exception:  # an error of a user's code may not even have a text
        lines = []
    return to_line(next((line for line in lines if line), type(error).__name__)[:max_length])
