"""Line numbers of the keys in a TOML document, which ``tomllib`` does not report."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

#: Keys and array indexes from the root of a document to a value: ``("map", 3, "from")``.
KeyPath = tuple[str | int, ...]
#: A multi-line string may end with one or two quotes of its own before the closing three.
_TOKEN = re.compile(
    r"""
    (?P<skip>[ \t\r]+|\#[^\n]*)
    | (?P<newline>\n)
    | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<mark>[\[\]{}=,.])
    | (?P<word>[^\s"'\[\]{}=,.\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)


def line_of(text: str, path: KeyPath) -> int | None:
    """Return the line, from 1, of the value at ``path``, or of the nearest enclosing table that has a line of its own.

    ``text`` must be valid TOML. Return None for the root, and for a document that is nested too deeply to scan.
    """
    try:
        lines = _Scanner(text).scan()
    except (IndexError, RecursionError):
        return None
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


class _Scanner:
    """Walk the tokens of a valid document and note the line of each key and array element when it first appears."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []  # kind, text, line
        self._lines: dict[KeyPath, int] = {}
        self._array_lengths: dict[KeyPath, int] = {}
        self._at = 0
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self._tokens.append((str(match.lastgroup), match[0], line))
            line += match[0].count("\n")

    def scan(self) -> Mapping[KeyPath, int]:
        """Return the line of each path."""
        table: KeyPath = ()
        while self._skip_newlines():
            if self._peek() == "[":
                table = self._header()
            else:
                self._entry(table)
        return self._lines

    def _header(self) -> KeyPath:
        """Read ``[a.b]`` or ``[[a.b]]`` and return the path of its table."""
        self._next()
        is_array = self._peek() == "["
        if is_array:
            self._next()
        path: KeyPath = ()
        keys = self._keys()
        for place, (key, line) in enumerate(keys):
            path += (key,)
            self._lines.setdefault(path, line)
            if is_array and place == len(keys) - 1:
                self._array_lengths[path] = self._array_lengths.get(path, 0) + 1
            if path in self._array_lengths:  # a header addresses the last table of an array
                path += (self._array_lengths[path] - 1,)
                self._lines.setdefault(path, line)
        for _ in range(2 if is_array else 1):
            self._next()
        return path

    def _entry(self, path: KeyPath) -> None:
        """Read ``a.b = value`` in the table at ``path``."""
        for key, line in self._keys():
            path += (key,)
            self._lines.setdefault(path, line)
        self._next()
        self._value(path)

    def _keys(self) -> list[tuple[str, int]]:
        """Read a dotted key up to its ``=`` or ``]``; return each part with its line."""
        keys: list[tuple[str, int]] = []
        while self._peek() not in ("=", "]"):
            kind, text, line = self._next()
            if kind == "text":  # quoted, perhaps with escapes
                keys.append((tomllib.loads(f"key = {text}")["key"], line))
            elif kind == "word":
                keys.append((text, line))
        return keys

    def _value(self, path: KeyPath) -> None:
        if self._peek() == "[":
            self._next()
            index = 0
            while self._skip_newlines() and self._peek() != "]":
                self._lines.setdefault((*path, index), self._tokens[self._at][2])
                self._value((*path, index))
                index += 1
                self._skip_comma()
            self._next()
        elif self._peek() == "{":
            self._next()
            while self._skip_newlines() and self._peek() != "}":
                self._entry(path)
                self._skip_comma()
            self._next()
        else:  # a string, or the parts of a number, a date or a boolean
            self._next()
            while self._at < len(self._tokens) and self._peek() not in ("\n", ",", "]", "}"):
                self._next()

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _next(self) -> tuple[str, str, int]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip_newlines(self) -> bool:
        """Skip line ends. Return False at the end of the document."""
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "newline":
            self._at += 1
        return self._at < len(self._tokens)

    def _skip_comma(self) -> None:
        if self._skip_newlines() and self._peek() == ",":
            self._next()
