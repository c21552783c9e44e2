"""The controller map: desk maps in use, and MIDI and OSC learn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tomli_w

from bridge.control.map_file import MAX_BINDINGS, Binding, load_map, read_map
from bridge.control.state import State
from bridge.file_reader import FileReader
from engine.shared.files import check_replaceable, write_atomically
from engine.shared.parameter import InvalidValue, Parameter
from engine.shared.table import lookup
from engine.shared.text import to_line

log = logging.getLogger(__name__)
#: The map that holds learned bindings.
LEARNED = "learned"
#: Addresses bound twice that are named.
MAX_PROBLEMS = 100


class ControllerMap:
    """The bindings of the desk maps in use; a later map overrides the addresses of an earlier one.

    ``names`` are those of the maps, ``folder`` holds the user's. Learned bindings are saved there in ``learned.toml``,
    which is always in use. ``problems`` lists addresses that were bound twice. ``reader`` reads and writes the files.
    """

    def __init__(
        self, state: State, names: Sequence[str] = (), folder: Path | None = None, reader: FileReader | None = None
    ) -> None:
        self._state, self._folder, self._reader = state, folder, reader or FileReader()
        self._place = f"desk maps in {folder}"
        self._lock = threading.RLock()
        self._learning: Parameter | None = None
        self.problems: list[str] = []
        self.bindings: list[Binding] = []
        for name in names:
            self._add(self._reader.call(f"desk map {name[:80]!r}", partial(load_map, name, folder)))
        if folder is not None and LEARNED not in names:
            try:
                self._add(self._reader.call(self._place, partial(_load_learned, folder)))
            except InvalidValue as error:
                log.error("%s", error)
        state.on_command("/learn", self.learn)

    @property
    def learning(self) -> str:
        """The parameter that the next message is bound to; empty for none."""
        return self._learning.name if self._learning is not None else ""

    def learn(self, name: str) -> None:
        """Bind the next foreign message to the parameter ``name``; an empty name or ``off`` cancels.

        Raises InvalidValue.
        """
        with self._lock:
            self._learning = None if name.strip() in ("", "off", "0") else lookup(name)

    def handle(self, address: str, arguments: Sequence[object], origin: str) -> bool:
        """Handle one message. Return False if no map binds its address. An invalid value is refused, never raised."""
        with self._lock:
            if self._learning is not None:
                self._learn(address, arguments, origin)
                return True
            matches = [(entry, match) for entry in self.bindings if (match := entry.pattern.fullmatch(address))]
        for binding, match in matches:
            try:
                converted = binding.convert(match.groupdict(), arguments)
            except InvalidValue as error:
                self._state.reject(str(error), origin)
                continue
            if converted is not None:
                self._state.set(binding.to, converted, f"{origin} ({binding.map_name})")
        return bool(matches)

    def _add(self, bindings: Sequence[Binding]) -> None:
        """Add bindings in the place of those that other maps have for the same argument of an address."""
        with self._lock:
            for new in bindings:
                # Bindings of one map may share an address, such as a button that fades and fires.
                replaced = [
                    old
                    for old in self.bindings
                    if (old.address, old.argument) == (new.address, new.argument) and old.map_name != new.map_name
                ]
                for old in replaced:
                    if old.to != new.to:
                        self._report(
                            f"{new.address} is bound to {old.to} by {old.map_name} and to {new.to} by {new.map_name}; "
                            "the last one counts"
                        )
                self.bindings = [old for old in self.bindings if old not in replaced] + [new]

    def _learn(self, address: str, arguments: Sequence[object], origin: str) -> None:
        parameter, self._learning = self._learning, None
        assert parameter is not None
        learned = {old.address for old in self.bindings if old.map_name == LEARNED}
        if len(learned) >= MAX_BINDINGS and address not in learned:
            self._state.reject(f"{address} is not learned: there are {MAX_BINDINGS} learned bindings already", origin)
            return
        index = next((i for i, value in enumerate(arguments) if _is_number(value)), 0)
        value = arguments[index] if index < len(arguments) else 1.0
        literal = address.replace("{", "").replace("}", "")
        new = Binding(literal, parameter.name, index, guess_input_range(address, value), map_name=LEARNED)
        replaced = [old for old in self.bindings if old.pattern.fullmatch(address) and old.to != parameter.name]
        for old in replaced:
            self._report(f"{address} was bound to {old.to} by {old.map_name}; it is {parameter.name} now")
        self.bindings = [old for old in self.bindings if old not in replaced and old.address != new.address] + [new]
        log.info("learned: %s from %s sets %s", address, origin, parameter.name)
        self._save()

    def _report(self, problem: str) -> None:
        self.problems = [*self.problems, to_line(problem, 300)][-MAX_PROBLEMS:]
        log.warning("%s", problem)

    def _save(self) -> None:
        """Save the learned bindings."""
        folder = self._folder
        if folder is None:
            return
        tables = [
            {"address": entry.address, "to": entry.to, "argument": entry.argument, "from": list(entry.input_range)}
            for entry in self.bindings
            if entry.map_name == LEARNED
        ]
        path = folder / f"{LEARNED}.toml"

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            check_replaceable(path)
            if path.exists():
                read_map(path, LEARNED)  # a file that is no map, such as one that is being edited, stays
            write_atomically(path, tomli_w.dumps({"map": tables}))

        def report(reason: str) -> None:
            self._state.reject(f"the learned bindings cannot be saved: {reason}", self._place)

        self._reader.submit(self._place, write, fail=report, key=(self._place, LEARNED), is_write=True)


def _load_learned(folder: Path) -> list[Binding]:
    path = folder / f"{LEARNED}.toml"
    return read_map(path, LEARNED) if path.exists() else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def guess_input_range(address: str, value: object) -> tuple[float, float]:
    """Return the range of a control, guessed from the first value that it sends."""
    if address.startswith("/midi/"):
        return 0.0, 127.0
    if address.startswith("/dmx/"):
        return 0.0, 255.0
    largest = abs(float(value)) if isinstance(value, int | float) else 1.0
    return 0.0, next((limit for limit in (1.0, 100.0, 127.0, 255.0) if largest <= limit), largest)
