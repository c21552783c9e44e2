"""Desk maps: foreign OSC addresses, and those that MIDI and DMX are given, to parameters, presets and cues.

A map is a TOML file of ``[[map]]`` tables::

    address = "/Page1/Fader201"   # a pattern; {name} catches a part of the address
    to = "/master"                # any parameter, trigger or command
    argument = 0                  # which argument counts, from 0
    from = [0, 100]               # the range that comes in …
    range = [0, 1]                # … and what it becomes; the parameter's own range where it is left out
    value = "bonfire"             # sent instead of the argument, when that is above 0; {name} puts in what was caught
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from bridge.control.state import State
from bridge.toml_files import FieldError, is_valid_name, line_of, read_toml
from engine.shared.parameter import InvalidValue, Parameter
from engine.shared.table import lookup

log = logging.getLogger(__name__)
#: Most entries of a map, and its largest file, in bytes.
MOST, LARGEST = 2000, 1 << 19
#: The file that learning writes into.
LEARNED = "learned"
_KEYS = ("address", "to", "argument", "from", "range", "value")
_PART = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True)
class Binding:
    """One binding. ``pattern`` matches an address and catches its named parts."""

    address: str
    to: str
    argument: int = 0
    given: tuple[float, float] = (0.0, 1.0)
    meant: tuple[float, float] | None = None
    value: str | float | None = None
    desk: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        return _expression(self.address)

    def arguments(self, caught: Mapping[str, str], arguments: Sequence[object]) -> list[object] | None:
        """What the parameter is sent; None where nothing is, as when a button is let go. Raises BadValue."""
        parameter = lookup(self.to)
        came: object = arguments[self.argument] if self.argument < len(arguments) else None
        if came is None and arguments:
            raise InvalidValue(
                f"{self.address} brought {len(arguments)} arguments, the map wants number {self.argument}"
            )
        pressed = came is None or isinstance(came, str) or bool(came)
        if self.value is not None:
            text = (
                _PART.sub(lambda part: caught.get(part[1], part[0]), self.value)
                if isinstance(self.value, str)
                else self.value
            )
            return [text] if pressed else None
        if parameter.kind == "trigger":
            return [] if pressed else None
        if (
            isinstance(came, bool)
            or not isinstance(came, int | float)
            or parameter.kind not in ("float", "int", "bool")
        ):
            return [] if came is None else [came]
        if not math.isfinite(came):
            raise InvalidValue(f"{self.address} brought {came}")
        return [self._scaled(parameter, float(came))]

    def _scaled(self, parameter: Parameter, came: float) -> object:
        low, high = self.given
        share = min(max((came - low) / (high - low), 0.0), 1.0)
        if parameter.kind == "bool":
            return share >= 0.5
        least, most = self.meant or (parameter.low, parameter.high)
        return least + (most - least) * share


@lru_cache(MOST)
def _expression(address: str) -> re.Pattern[str]:
    """``{name}`` catches a part, ``*`` is any part; all else is itself."""
    out, place = "", 0
    for part in re.finditer(r"\{([a-z]+)\}|\*", address):
        out += re.escape(address[place : part.start()])
        out += f"(?P<{part[1]}>[^/]+)" if part[1] else "[^/]+"
        place = part.end()
    return re.compile(out + re.escape(address[place:]))


def read(path: Any, desk: str) -> list[Binding]:
    """The entries of a map. Raises BadValue with the line where it is known."""
    text, content = read_toml(path, f"desk map {desk!r}", LARGEST)
    tables = content.get("map", [])
    odd = next((key for key in content if key not in ("map", "title")), None)
    if (
        odd is not None
        or not isinstance(tables, list)
        or len(tables) > MOST
        or not all(isinstance(table, dict) for table in tables)
    ):
        raise InvalidValue(
            f"desk map {desk!r} is a title and at most {MOST} tables [[map]]{f', not {odd!r}' if odd else ''}"
        )
    entries = []
    for place, table in enumerate(tables, 1):
        try:
            entries.append(_entry(table, desk))
        except FieldError as error:
            raise InvalidValue(
                f"desk map {desk!r}, entry {place}{line_of(text, error.key) if len(tables) == 1 else ''}: {error}"
            ) from None
    return entries


def _entry(table: Mapping[str, Any], desk: str) -> Binding:
    odd = next((key for key in table if key not in _KEYS), None)
    if odd is not None:
        raise FieldError(odd, f"no setting is called {odd!r}; there are {', '.join(_KEYS)}")
    address, to = table.get("address"), table.get("to")
    if not isinstance(address, str) or not address.startswith("/") or len(address) > 255:
        raise FieldError("address", f"address begins with /, got {address!r}")
    try:
        _expression(address)
        parameter = lookup(str(to))
    except re.error as error:
        raise FieldError("address", f"{address!r} cannot be a pattern: {error}") from None
    except InvalidValue as error:
        raise FieldError("to", str(error)) from None
    argument, value = table.get("argument", 0), table.get("value")
    if isinstance(argument, bool) or not isinstance(argument, int) or not 0 <= argument < 64:
        raise FieldError("argument", f"argument counts from 0, got {argument!r}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise FieldError("value", f"value is text or a number, got {value!r}")
    if value is not None and not (isinstance(value, str) and _PART.search(value)):
        try:
            parameter.coerce([value])
        except InvalidValue as error:
            raise FieldError("value", str(error)) from None
    return Binding(
        address, parameter.name, argument, _pair(table, "from") or (0.0, 1.0), _pair(table, "range"), value, desk
    )


def _pair(table: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    pair = table.get(key)
    if pair is None:
        return None
    good = (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)
    )
    if not good or not all(math.isfinite(n) for n in pair) or (key == "from" and pair[0] == pair[1]):
        raise FieldError(key, f"{key} is two numbers, got {pair!r}")
    return float(pair[0]), float(pair[1])


class ControllerMap:
    """The maps that are in use, later ones over earlier ones. ``take`` is what comes in from outside; it never raises.

    ``folder`` holds one's own maps; what is learnt is kept there, in ``learned.toml``.
    """

    def __init__(self, state: State, names: Sequence[str] = (), folder: Path | None = None) -> None:
        self._state, self._folder = state, folder
        self._lock = threading.RLock()
        self._learning: Parameter | None = None
        self.problems: list[str] = []
        self.entries: list[Binding] = []
        for name in names:
            self._add(load(name, folder))
        learned = folder / f"{LEARNED}.toml" if folder is not None else None
        if learned is not None and learned.exists() and LEARNED not in names:
            try:
                self._add(read(learned, LEARNED))
            except InvalidValue as error:
                log.error("%s", error)
        state.on_command("/learn", self.learn)

    @property
    def learning(self) -> str:
        """The parameter that the next message will be bound to; empty for none."""
        return self._learning.name if self._learning is not None else ""

    def learn(self, name: str) -> None:
        """Binds the next foreign message to the parameter called ``name``; no name, or ``off``, ends that. Raises BadValue."""
        with self._lock:
            self._learning = None if name.strip() in ("", "off", "0") else lookup(name)

    def take(self, address: str, arguments: Sequence[object], origin: str) -> bool:
        """One message; False where no map knows its address."""
        with self._lock:
            if self._learning is not None:
                self._learn(address, arguments, origin)
                return True
            found = [(entry, match) for entry in self.entries if (match := entry.pattern.fullmatch(address))]
        for entry, match in found:
            try:
                meant = entry.arguments(match.groupdict(), arguments)
            except InvalidValue as error:
                self._state.reject(str(error), origin)
                continue
            if meant is not None:
                self._state.set(entry.to, meant, f"{origin} ({entry.desk})")
        return bool(found)

    def _add(self, entries: Sequence[Binding]) -> None:
        """Takes entries; one for an address that is bound already takes its place, and that is told where it means something else."""
        with self._lock:
            for entry in entries:
                others = [
                    old for old in self.entries if old.address == entry.address and old.argument == entry.argument
                ]
                # Several entries of one map may hang on one address, as a button that fades and fires.
                replaced = [old for old in others if old.desk != entry.desk]
                for old in replaced:
                    if old.to != entry.to:
                        told = f"{entry.address} is bound to {old.to} by {old.desk} and to {entry.to} by {entry.desk}; the last one counts"
                        self.problems.append(told)
                        log.warning("%s", told)
                self.entries = [old for old in self.entries if old not in replaced] + [entry]

    def _learn(self, address: str, arguments: Sequence[object], origin: str) -> None:
        parameter, self._learning = self._learning, None
        assert parameter is not None
        number = next(
            (i for i, value in enumerate(arguments) if isinstance(value, int | float) and not isinstance(value, bool)),
            0,
        )
        came = arguments[number] if number < len(arguments) else 1.0
        entry = Binding(
            address.replace("{", "").replace("}", ""),
            parameter.name,
            number,
            _guessed(address, came),
            None,
            None,
            LEARNED,
        )
        bound = [old for old in self.entries if old.pattern.fullmatch(address) and old.to != parameter.name]
        for old in bound:
            told = f"{address} was bound to {old.to} by {old.desk}; it is {parameter.name} now"
            self.problems.append(told)
            log.warning("%s", told)
        self.entries = [old for old in self.entries if old not in bound and old.address != entry.address] + [entry]
        log.info("learnt: %s from %s sets %s", address, origin, parameter.name)
        self._keep()

    def _keep(self) -> None:
        """Writes what was learnt."""
        if self._folder is None:
            return
        learnt = [entry for entry in self.entries if entry.desk == LEARNED]
        tables = [{"address": e.address, "to": e.to, "argument": e.argument, "from": list(e.given)} for e in learnt]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._folder / f"{LEARNED}.part"
            unfinished.write_text(tomli_w.dumps({"map": tables}), encoding="utf-8")
            unfinished.replace(self._folder / f"{LEARNED}.toml")
        except OSError as error:
            log.error("what was learnt cannot be kept: %s", error.strerror)


def _guessed(address: str, came: object) -> tuple[float, float]:
    """The range of a control by the first value that it sends."""
    if address.startswith("/midi/"):
        return 0.0, 127.0
    if address.startswith("/dmx/"):
        return 0.0, 255.0
    value = abs(float(came)) if isinstance(came, int | float) else 1.0
    return 0.0, next((most for most in (1.0, 100.0, 127.0, 255.0) if value <= most), value)


def names(folder: Path | None = None) -> list[str]:
    """Every map that there is."""
    own = [path.stem for path in sorted(folder.glob("*.toml"))] if folder is not None else []
    return sorted({*_shipped(), *own})


def _shipped() -> dict[str, Any]:
    return {
        path.name.removesuffix(".toml"): path
        for path in files("presets").joinpath("desks").iterdir()
        if path.name.endswith(".toml")
    }


def load(name: str, folder: Path | None = None) -> list[Binding]:
    """The map called ``name``, shipped or one's own, or the file at that path. Raises BadValue."""
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        return read(path, path.stem)
    if not is_valid_name(name):
        raise InvalidValue(
            f"a desk map is called by letters, digits, blanks, dots, dashes and underscores, got {name[:80]!r}"
        )
    found = _shipped() | ({path.stem: path for path in folder.glob("*.toml")} if folder is not None else {})
    if name not in found:
        raise InvalidValue(
            f"no desk map {name!r}; there are {', '.join(sorted(found))}, or give the path of a .toml file"
        )
    return read(found[name], name)
