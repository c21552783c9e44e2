"""Tokens of a TOML document: bounds on what ``tomllib`` may be given, and line numbers, which it does not report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

#: Keys and array indexes from the root of a document to a value: ``("map", 3, "from")``.
KeyPath = tuple[str | int, ...]
#: Parts of a dotted key, brackets within each other, and characters of a bare key or a number. ``tomllib`` takes
#: memory and time that grow with the square of the first two, and Python with that of the last.
MAX_KEY_PARTS, MAX_NESTING, MAX_WORD_LENGTH = 8, 32, 1024
#: Brackets and dots of keys, each of which takes ``tomllib`` a kilobyte; keys and elements.
MAX_TABLES, MAX_VALUES = 40_000, 100_000
#: The repetitions keep no way back (``*+``), so that a long token takes no memory. A string that does not end reaches
#: to the end of its line or of the document. A multi-line one may end with two more quotes than the closing three.
_TOKEN = re.compile(
    r"""
    (?P<skip>(?:[ \t\r]|\#[^\n]*+)++)
    | (?P<newline>\n(?:\s|\#[^\n]*+)*+)
    | (?P<text>\"{3}(?:\\.|[^"\\]|"{1,2}(?!"))*+\"{0,5} | '{3}(?:[^']|'{1,2}(?!'))*+'{0,5}
        | "(?:\\.|[^"\\\n])*+"? | '[^'\n]*+'?)
    | (?P<mark>[\[\]{}=,.])
    | (?P<word>[^\s"'\[\]{}=,.\#]++(?:(?<=\d)\.(?=\d)[\w+-]++)?)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


def check_bounds(text: str) -> None:
    """Raise ValueError if parsing ``text`` as TOML could take seconds or hundreds of megabytes."""
    parts, depth, tables, values = 1, 0, 0, 0
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "mark":
            parts = parts + 1 if token == "." else 1
            if token in "[{":
                depth += 1
            elif token in "]}":
                depth = max(0, depth - 1)
            tables += token in "[{."
            values += token in "=,"
        elif kind == "newline":
            parts = 1
        excess = (
            f"a key of more than {MAX_KEY_PARTS} parts"
            if parts > MAX_KEY_PARTS
            else f"more than {MAX_NESTING} brackets within each other"
            if depth > MAX_NESTING
            else f"a key or number of more than {MAX_WORD_LENGTH} characters"
            if kind == "word" and len(token) > MAX_WORD_LENGTH
            else f"more than {MAX_TABLES} tables, lists and parts of keys"
            if tables > MAX_TABLES
            else f"more than {MAX_VALUES} values"
            if values > MAX_VALUES
            else ""
        )
        if excess:
            raise ValueError(f"{excess} (at line {text.count(chr(10), 0, match.start()) + 1})")


def line_of(text: str, path: KeyPath) -> int | None:
    """Return the line, from 1, of the value at ``path``, or of the nearest enclosing table that has a line of its own.

    ``text`` must be valid TOML. Return None for the root, and for a document that is nested too deeply to scan.
    """
    try:
        lines = _Scanner(text, path).scan()
    except (StopIteration, RecursionError):
        return None
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


class _Scanner:
    """Walk the tokens of a valid document and note where each key and array element on a path first appears."""

    def __init__(self, text: str, path: KeyPath) -> None:
        self._path = path
        self._lines: dict[KeyPath, int] = {}
        self._array_lengths: dict[KeyPath, int] = {}
        self._tokens = _tokens_of(text)
        #: The next token: kind, text, line. Its kind is empty at the end.
        self._token = next(self._tokens)

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
            self._note(path, line)
            if is_array and place == len(keys) - 1:
                self._array_lengths[path] = self._array_lengths.get(path, 0) + 1
            if path in self._array_lengths:  # a header addresses the last table of an array
                path += (self._array_lengths[path] - 1,)
                self._note(path, line)
        for _ in range(2 if is_array else 1):
            self._next()
        return path

    def _entry(self, path: KeyPath) -> None:
        """Read ``a.b = value`` in the table at ``path``."""
        for key, line in self._keys():
            path += (key,)
            self._note(path, line)
        self._next()
        self._value(path)

    def _keys(self) -> list[tuple[str, int]]:
        """Read a dotted key up to its ``=`` or ``]``; return each part with its line."""
        keys: list[tuple[str, int]] = []
        while self._peek() not in ("=", "]"):
            kind, text, line = self._next()
            if kind == "text":  # quoted, perhaps with escapes
                keys.append((_unquote(text), line))
            elif kind == "word":
                keys += [(part, line) for part in text.split(".")]  # of digits, as in 1.2
        return keys

    def _value(self, path: KeyPath) -> None:
        if self._peek() == "[":
            self._next()
            index = 0
            while self._skip_newlines() and self._peek() != "]":
                self._note((*path, index), self._token[2])
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
            while self._token[0] not in ("", "newline") and self._peek() not in (",", "]", "}"):
                self._next()

    def _note(self, path: KeyPath, line: int) -> None:
        if path == self._path[: len(path)]:
            self._lines.setdefault(path, line)

    def _peek(self) -> str:
        return self._token[1]

    def _next(self) -> tuple[str, str, int]:
        token, self._token = self._token, next(self._tokens)
        return token

    def _skip_newlines(self) -> bool:
        """Skip line ends. Return False at the end of the document."""
        while self._token[0] == "newline":
            self._next()
        return bool(self._token[0])

    def _skip_comma(self) -> None:
        if self._skip_newlines() and self._peek() == ",":
            self._next()


def _tokens_of(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and line of each token but blanks and comments, then an empty one."""
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            yield str(match.lastgroup), match[0], line
        line += match[0].count("\n")
    yield "", "", line


def _unquote(text: str) -> str:
    """Return a quoted key without its quotes, and with its escapes replaced."""
    if text[0] == "'":
        return text[1:-1]
    return _ESCAPE.sub(
        lambda part: chr(int(part[1] or part[2], 16)) if part[3] is None else _ESCAPED.get(part[3], part[3]), text[1:-1]
    )
