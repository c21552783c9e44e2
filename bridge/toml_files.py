"""TOML files that users write, read into msgspec types. An error is one line that names the place."""

from __future__ import annotations

import errno
import re
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bridge.toml_lines import KeyPath, check_bounds, line_of
from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue, abbreviate
from engine.shared.user_files import list_folder, read_bytes

T = TypeVar("T", bound=msgspec.Struct)
#: The name of a preset, a cue list or a desk map. It is never a path.
VALID_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")
#: Files of one folder that are read.
MAX_FILES_PER_FOLDER = 1000
NAME_RULE = "a name consists of letters, digits, spaces, dots, dashes and underscores"
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?: of length (?P<length>\d+))?")
_PATH_PART = re.compile(r"\.(\w+)|\[(\d+)\]")
_TYPE_NAMES = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


class FieldError(InvalidValue):
    """An invalid value, with the key at which it is or the path to it from the object that raises the error.

    Raise it in ``__post_init__`` of a type that ``read_toml`` reads: the reader adds the path of the object.
    """

    def __init__(self, key: str | KeyPath, reason: str) -> None:
        super().__init__(reason)
        self.path: KeyPath = (key,) if isinstance(key, str) else key


def is_valid_name(name: str) -> bool:
    """Return whether ``name`` may name a preset, a cue list or a desk map."""
    return bool(VALID_NAME.fullmatch(name)) and ".." not in name


def list_toml_files(folders: Iterable[Path]) -> list[Path]:
    """Return the TOML files of each folder in order of their names, without hidden files. A missing folder has none.

    Only the first MAX_FILES_PER_FOLDER of a folder are returned.
    """
    return [path for folder in folders for path in list_folder(folder, ".toml", MAX_FILES_PER_FOLDER)]


def shipped_toml_files(*folder: str) -> dict[str, Any]:
    """Return the TOML files that come with Phosphene in a folder of ``presets``, by their names without the suffix."""
    paths = (path for path in files("presets").joinpath(*folder).iterdir() if path.name.endswith(".toml"))
    return {path.name.removesuffix(".toml"): path for path in sorted(paths, key=lambda path: path.name)}


def read_toml(path: Any, what: str, max_bytes: int, type_: type[T], rest: str = "") -> T:
    """Read a TOML file, or a resource of a package, as a ``type_``.

    ``what`` names the file in messages. ``rest`` is the field of ``type_`` that collects the top-level keys which are
    no fields of their own. Raises InvalidValue, one line with the line number of the key at fault.
    """
    try:
        data = read_bytes(path, max_bytes) if isinstance(path, Path) else path.read_bytes()
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise InvalidValue(f"{what} is larger than {max_bytes} bytes") from None
        raise InvalidValue(f"{what} cannot be read: {error.strerror}") from None
    except ValueError:  # a null character
        raise InvalidValue(f"{what} cannot be read: not a file name") from None
    try:
        text = data.decode("utf-8")
        check_bounds(text)
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{what} is not UTF-8: byte {error.start} is invalid") from None
    except (ValueError, RecursionError) as error:  # ValueError also covers a number of too many digits
        raise InvalidValue(f"{what} is not valid TOML: {first_line(error)}") from None
    try:
        return msgspec.convert(_collect(content, type_, rest) if rest else content, type_)
    except msgspec.ValidationError as error:
        keys, reason = _explain(error, content, type_)
        line = line_of(text, keys)
        raise InvalidValue(f"{what}{f', line {line}' if line else ''}: {reason}") from None


def _collect(content: dict[str, Any], type_: type[msgspec.Struct], rest: str) -> dict[str, Any]:
    """Return ``content`` with the keys that ``type_`` does not declare moved into a table under ``rest``."""
    declared = set(type_.__struct_encode_fields__) - {rest}
    known = {key: value for key, value in content.items() if key in declared}
    return known | {rest: {key: value for key, value in content.items() if key not in declared}}


def _explain(error: msgspec.ValidationError, content: Any, type_: type[msgspec.Struct]) -> tuple[KeyPath, str]:
    """Return the path of the key at fault and the reason for people."""
    message, _, suffix = str(error).rpartition(" - at `$")
    if not message:
        message, suffix = str(error), ""
    path: KeyPath = tuple(key or int(index) for key, index in _PATH_PART.findall(suffix))
    if isinstance(error.__cause__, FieldError):
        return path + error.__cause__.path, str(error.__cause__)
    if isinstance(error.__cause__, InvalidValue):
        return path, str(error.__cause__)
    if message.startswith("Object contains unknown field"):
        key = message.split("`")[1]
        return (*path, key), f"unknown key {key!r}; the keys are {', '.join(_fields_at(type_, path))}"
    if message.startswith("Object missing required field"):
        return path, f"the key {message.split('`')[1]!r} is missing"
    key = next((part for part in reversed(path) if isinstance(part, str)), "the file")
    expected = _EXPECTED.match(message)
    if expected is None:
        return path, f"{key}: {message[:1].lower()}{message[1:]}"
    types = [name for name in expected["types"].split(" | ") if name != "null"]
    if "float" in types and "int" in types:
        types.remove("int")
    names = [_TYPE_NAMES.get(name, name) for name in types]
    length = f" of {expected['length']} values" if expected["length"] else ""
    return path, f"{key} takes {' or '.join(names)}{length}, got {abbreviate(_value_at(content, path))}"


def _fields_at(type_: type[msgspec.Struct], path: KeyPath) -> tuple[str, ...]:
    """Return the keys of the Struct at ``path`` in a document of ``type_``."""
    at: Any = msgspec.inspect.type_info(type_)
    for part in path:
        if isinstance(at, msgspec.inspect.StructType):
            at = next(field.type for field in at.fields if field.encode_name == part)
        elif isinstance(at, msgspec.inspect.ListType):
            at = at.item_type
    return tuple(field.encode_name for field in at.fields)


def _value_at(content: Any, path: KeyPath) -> Any:
    for part in path:
        content = content[part]
    return content
