"""OSC 1.0 address patterns, matched against the addresses in the parameter table."""

from __future__ import annotations

import re
from functools import lru_cache

from engine.shared.table import ROOT, TABLE

_SPECIAL = frozenset("*?[]{}")


def is_pattern(address: str) -> bool:
    """Return whether the address holds a pattern character."""
    return not _SPECIAL.isdisjoint(address)


def match_pattern(pattern: str) -> tuple[str, ...]:
    """Return the names of the parameters whose address matches ``pattern``, in the table's order.

    ``?``, ``*``, ``[abc]``, ``[!a-c]`` and ``{one,two}`` match within one part of the address. A malformed pattern
    matches nothing.
    """
    return _match(pattern, TABLE.version)


@lru_cache(256)
def _match(pattern: str, _table_version: int) -> tuple[str, ...]:
    """Match once for each version of the table, which hook files change while the show runs."""
    try:
        expression = re.compile(_to_expression(pattern))
    except re.error:
        return ()
    return tuple(name for name in TABLE if expression.fullmatch(ROOT + name))


def _to_expression(pattern: str) -> str:
    """Translate the pattern to a regular expression. Raises re.error."""
    out, i = [], 0
    simple = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
    depth = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "[":
            end = pattern.find("]", i)
            if end < 0:
                raise re.error("unclosed [")
            inside = pattern[i + 1 : end].replace("\\", "\\\\").replace("^", "\\^")
            out.append("[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]")
            i = end
        else:
            depth += {"{": 1, "}": -1}.get(char, 0)
            out.append("|" if char == "," and depth else simple.get(char, re.escape(char)))
        i += 1
    return re.sub(r"(\[\^/\]\*)+", r"[^/]*", "".join(out))  # a run of * would backtrack exponentially
