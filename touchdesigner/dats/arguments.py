"""Splits the parameter Arguments into the words of a command line."""

import re
import sys

#: A quoted part of an argument. Single quotes count at the beginning and end of a word, so that O'Brien stays whole.
QUOTED = r"""\"([^"]*)\"|(?:(?<=[\s=])|^)'([^']*)'(?=\s|$)"""


def split_arguments(text):
    """Split a line of arguments at its blanks, without the quotes around parts that hold blanks.

    A backslash is a character like any other, as in Windows paths. Outside Windows, one before a blank joins it, as
    in a path that was dragged into a terminal. Raises ValueError for a quote that is not closed.
    """
    piece = QUOTED if sys.platform == "win32" else QUOTED + r"|\\(\s)"
    words = [match.group() for match in re.finditer(rf"(?:{piece}|\S)+", text)]
    if '"' in re.sub(piece, "", text):
        raise ValueError('a " in Arguments is not closed')
    return [re.sub(piece, lambda match: next(part for part in match.groups() if part is not None), w) for w in words]
