"""Files that users write: read as TOML within bounds, and what is wrong with one told in one line with its place."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from engine.shared.parameter import InvalidValue

#: What a preset, a cue list or a desk map may be called: never a path.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


class FieldError(InvalidValue):
    """A value that cannot be, under the key that it stands at."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def is_valid_name(name: str) -> bool:
    """Whether ``name`` may name one."""
    return bool(NAME.fullmatch(name)) and ".." not in name


def read_toml(path: Any, what: str, largest: int) -> tuple[str, dict[str, Any]]:
    """Text and content of a TOML file, or of a resource of a package; ``what`` is it for people. Raises BadValue."""
    try:
        data = path.read_bytes()
        if len(data) > largest:
            raise InvalidValue(f"{what} is larger than {largest} bytes")
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise InvalidValue(f"{what} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"{what} is no TOML: {error}") from None


def line_of(text: str, key: str) -> str:
    """Where ``key`` stands in the text of a file, for people."""
    quoted = re.compile(rf"""\s*(?:\[+\s*)?["']?{re.escape(key)}["']?\s*[=\].]""")
    return next((f", line {number}" for number, line in enumerate(text.splitlines(), 1) if quoted.match(line)), "")
