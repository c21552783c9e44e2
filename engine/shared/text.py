"""Text from outside: whether it is valid Unicode, and how it appears in a line of the log.

Python gives bytes that are no UTF-8 as lone surrogates, and JSON can spell them. No encoder takes them.
"""

from __future__ import annotations

#: Longest line that is made of foreign text, in characters.
MAX_LINE_CHARACTERS = 1000


def is_valid_unicode(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8: it holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escape_surrogates(text: str) -> str:
    r"""Return the text with each lone surrogate spelled out, such as ``\udcff``. The result is valid Unicode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_line(text: str, max_length: int = MAX_LINE_CHARACTERS) -> str:
    r"""Return the text as one line of valid Unicode, cut to ``max_length``.

    Line breaks, control characters, direction marks and lone surrogates are spelled out, such as ``\n`` or ``\u202e``.
    """
    if len(text) > max_length:
        text = text[: max_length - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
