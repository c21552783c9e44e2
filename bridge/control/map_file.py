"""Desk maps: TOML files that bind foreign OSC addresses, MIDI and DMX to parameters, triggers and commands.

A map holds ``[[map]]`` tables::

    address = "/Page1/Fader201"   # a pattern: {name} captures a part of the address, * matches any part
    to = "/master"                # any parameter, trigger or command
    argument = 0                  # index of the argument that counts
    from = [0, 100]               # input range …
    range = [0, 1]                # … and output range (default: the parameter's range)
    value = "bonfire"             # sent instead of the argument when that is above 0; {name} inserts a captured part
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec

from bridge.file_reader import expand_user
from bridge.toml_files import NAME_RULE, FieldError, is_valid_name, list_toml_files, read_toml, shipped_toml_files
from engine.shared.parameter import InvalidValue, Parameter
from engine.shared.table import lookup

MAX_BINDINGS = 2000
MAX_MAP_BYTES = 1 << 19
MAX_ADDRESS_LENGTH = 255
MAX_ARGUMENTS = 64
_CAPTURE = re.compile(r"\{([a-z]+)\}")

Range = tuple[float, float]


@dataclass(frozen=True)
class Binding:
    """One binding. ``output_range`` is None for the parameter's own range; ``map_name`` is the map that it is from."""

    address: str
    to: str
    argument: int = 0
    input_range: Range = (0.0, 1.0)
    output_range: Range | None = None
    value: str | float | None = None
    map_name: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The address as an expression with a group for each captured part."""
        return compile_address(self.address)

    def convert(self, captures: Mapping[str, str], arguments: Sequence[object]) -> list[object] | None:
        """Return the arguments for the parameter; None to send nothing, as on the release of a button.

        Raises InvalidValue.
        """
        parameter = lookup(self.to)
        argument: object = arguments[self.argument] if self.argument < len(arguments) else None
        if argument is None and arguments:
            raise InvalidValue(
                f"{self.address} has {len(arguments)} arguments, the map {self.map_name!r} reads index {self.argument}"
            )
        is_pressed = argument is None or isinstance(argument, str) or bool(argument)
        if self.value is not None:
            value: object = self.value
            if isinstance(self.value, str):
                value = _CAPTURE.sub(lambda part: captures.get(part[1], part[0]), self.value)
            return [value] if is_pressed else None
        if parameter.kind == "trigger":
            return [] if is_pressed else None
        is_number = isinstance(argument, int | float) and not isinstance(argument, bool)
        if not is_number or parameter.kind not in ("float", "int", "bool"):
            return [] if argument is None else [argument]
        number = float(argument)  # type: ignore[arg-type]
        if not math.isfinite(number):
            raise InvalidValue(f"{self.address} takes a finite number, got {number}")
        return [self._scale(parameter, number)]

    def _scale(self, parameter: Parameter, number: float) -> float | bool:
        """Map a number from the input range to the output range. A boolean is on from the middle of the range."""
        low, high = self.input_range
        share = min(max((number - low) / (high - low), 0.0), 1.0)
        if parameter.kind == "bool":
            return share >= 0.5
        low, high = self.output_range or (parameter.low, parameter.high)
        return low + (high - low) * share


class _BindingTable(
    msgspec.Struct, forbid_unknown_fields=True, rename={"input_range": "from", "output_range": "range"}
):
    """One table ``[[map]]`` of a file."""

    address: str
    to: str
    argument: int = 0
    input_range: Range = (0.0, 1.0)
    output_range: Range | None = None
    value: str | int | float | None = None

    def __post_init__(self) -> None:
        if not self.address.startswith("/") or len(self.address) > MAX_ADDRESS_LENGTH:
            raise FieldError(
                "address",
                f"address begins with / and has at most {MAX_ADDRESS_LENGTH} characters, got {self.address[:80]!r}",
            )
        try:
            compile_address(self.address)
        except re.error as error:
            raise FieldError("address", f"{self.address!r} is not a valid pattern: {error}") from None
        if not 0 <= self.argument < MAX_ARGUMENTS:
            raise FieldError("argument", f"argument takes an index from 0 to {MAX_ARGUMENTS - 1}, got {self.argument}")
        for key, numbers in (("from", self.input_range), ("range", self.output_range or (0.0, 0.0))):
            if not all(math.isfinite(number) for number in numbers):
                raise FieldError(key, f"{key} takes two finite numbers, got {list(numbers)}")
        if self.input_range[0] == self.input_range[1]:
            raise FieldError("from", f"from takes two different numbers, got {list(self.input_range)}")
        try:
            parameter = lookup(self.to)
        except InvalidValue as error:
            raise FieldError("to", str(error)) from None
        has_capture = isinstance(self.value, str) and _CAPTURE.search(self.value)
        if self.value is not None and not has_capture:
            try:
                parameter.coerce([self.value])
            except InvalidValue as error:
                raise FieldError("value", str(error)) from None

    def binding(self, map_name: str) -> Binding:
        """Return the binding."""
        return Binding(
            self.address,
            lookup(self.to).name,
            self.argument,
            self.input_range,
            self.output_range,
            self.value,
            map_name,
        )


class _MapFile(msgspec.Struct, forbid_unknown_fields=True):
    """A desk map's file."""

    title: str | int | float = ""
    map: list[_BindingTable] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.map) > MAX_BINDINGS:
            raise FieldError("map", f"a desk map holds at most {MAX_BINDINGS} bindings, got {len(self.map)}")


@lru_cache(MAX_BINDINGS)
def compile_address(address: str) -> re.Pattern[str]:
    """Return an address as an expression: ``{name}`` captures a part, ``*`` matches any part. Raises re.error."""
    expression, position = "", 0
    for part in re.finditer(r"\{([a-z]+)\}|\*", address):
        expression += re.escape(address[position : part.start()])
        expression += f"(?P<{part[1]}>[^/]+)" if part[1] else "[^/]+"
        position = part.end()
    return re.compile(expression + re.escape(address[position:]))


def read_map(path: Any, name: str) -> list[Binding]:
    """Read a desk map from a file, or from a resource of a package. Raises InvalidValue with the line at fault."""
    content = read_toml(path, f"desk map {name!r}", MAX_MAP_BYTES, _MapFile)
    return [table.binding(name) for table in content.map]


def map_names(folder: Path | None = None) -> list[str]:
    """Return the names of all desk maps."""
    return sorted(_list_maps(folder))


def load_map(name: str, folder: Path | None = None) -> list[Binding]:
    """Return the bindings of the map ``name``, shipped or in ``folder``, or of the file at that path.

    Raises InvalidValue.
    """
    if name.endswith(".toml"):
        path = expand_user(name)
        return read_map(path, path.stem)
    if not is_valid_name(name):
        raise InvalidValue(f"desk map {name[:80]!r}: {NAME_RULE}")
    paths = _list_maps(folder)
    if name not in paths:
        names = ", ".join(sorted(paths))[:400]
        raise InvalidValue(f"no desk map {name!r}; there are {names}, or give the path of a .toml file")
    return read_map(paths[name], name)


def _list_maps(folder: Path | None) -> dict[str, Any]:
    user_files = list_toml_files([folder]) if folder is not None else []
    return shipped_toml_files("desks") | {path.stem: path for path in user_files}
