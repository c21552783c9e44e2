"""The present values of all parameters. Every input (OSC, panel, command line) ends here."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence

from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue, Parameter, Value
from engine.shared.snapshot import Mixture, Snapshot
from engine.shared.table import FILES, TABLE, declare, lookup
from engine.shared.text import to_line

log = logging.getLogger(__name__)


class State:
    """Values validated by the table, numbered snapshots of them, and a count of rejected input. Thread-safe."""

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._lock = threading.RLock()
        self._values = dict(Snapshot(values))
        self._number = 1
        self._limit, self._failure_limit = RateLimit(), RateLimit()
        self._listeners: list[Callable[[], None]] = []
        self._followers: list[Callable[[frozenset[str], str], None]] = []
        self._triggers: dict[str, Callable[[], None]] = {}
        self._commands: dict[str, Callable[[str], None]] = {}
        self._mixture: Mixture = ()
        self._overlay: dict[str, Value] = {}
        self._snapshots: tuple[Snapshot, Snapshot] | None = None
        self.rejected = self.accepted = 0
        self.last_rejection = ""
        self.confine: Callable[[str], None] = lambda _text: None

    def snapshot(self) -> Snapshot:
        """Return all values as they were set."""
        return self._current_snapshots()[0]

    def effective(self) -> Snapshot:
        """Return all values under the modulators' overlay, as the engine renders them."""
        return self._current_snapshots()[1]

    def _current_snapshots(self) -> tuple[Snapshot, Snapshot]:
        """Return the snapshots without and with the overlay, built once for each change: many threads ask for them."""
        with self._lock:
            if self._snapshots is None or self._snapshots[0].number != self._number:
                plain = Snapshot(self._values, self._number, self._mixture)
                overlaid = plain
                if self._overlay:
                    overlaid = Snapshot(self._values | self._overlay, self._number, self._mixture)
                self._snapshots = plain, overlaid
            return self._snapshots

    def overlay(self, values: Mapping[str, Value]) -> None:
        """Replace the values that lie over those that were set."""
        with self._lock:
            if values == self._overlay:
                return
            self._overlay = dict(values)
            self._number += 1
        for listener in self._listeners:
            self._call(listener)

    @property
    def number(self) -> int:
        """Number of the present values; it grows with every change."""
        return self._number

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every change, on the thread that made it. It must be quick."""
        self._listeners.append(listener)

    def on_set(self, follower: Callable[[frozenset[str], str], None]) -> None:
        """Call ``follower`` after every change with the names that changed and the origin. It must be quick."""
        self._followers.append(follower)

    def on_command(self, name: str, handler: Callable[[str], None]) -> None:
        """Handle the command ``name``. An InvalidValue that the handler raises rejects the command."""
        self._commands[name] = handler

    def on_trigger(self, name: str, handler: Callable[[], None]) -> None:
        """Handle the trigger ``name``, on the thread that sets it."""
        self._triggers[name] = handler

    def set(self, name: str, arguments: Sequence[object], origin: str) -> bool:
        """Set one parameter from raw arguments. Return False if they are invalid.

        Invalid input changes nothing: it is counted, and logged at a limited rate.
        """
        try:
            parameter = lookup(name)
            value = self._coerce(parameter, arguments)
            if parameter.name in FILES:
                self.confine(str(value))
            if parameter.kind == "command" and parameter.name in self._commands:
                self._commands[parameter.name](str(value))
            if parameter.kind == "trigger" and value:
                self._trigger(parameter.name)
        except InvalidValue as error:
            self.reject(str(error), origin)
            return False
        except Exception as error:  # a handler of a command or trigger: its caller's thread must live
            if self._failure_limit.passes()[0]:
                log.exception("%s failed", to_line(name, 80))
            self.reject(f"{to_line(name, 80)} failed: {first_line(error)}", origin)
            return False
        if parameter.has_value:
            self.put({parameter.name: value}, by=origin)
        self.accepted += 1
        return True

    def put(
        self,
        values: Mapping[str, Value],
        mixture: Mixture | None = None,
        by: str = "",
        expected: Mapping[str, Value] | None = None,
    ) -> None:
        """Set validated values in one change, and the mixture unless it is None.

        A value that differs from its ``expected`` one is left alone: another thread was quicker.
        """
        with self._lock:
            changed = {name: value for name, value in values.items() if self._values.get(name) != value}
            if expected is not None:
                changed = {
                    name: value
                    for name, value in changed.items()
                    if name not in expected or self._values.get(name) == expected[name]
                }
            if not changed and mixture in (None, self._mixture):
                return
            self._values.update(changed)
            self._mixture = self._mixture if mixture is None else mixture
            self._number += 1
        for listener in self._listeners:
            self._call(listener)
        for follower in self._followers:
            self._call(follower, frozenset(changed), by)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call a listener or follower. What it raises is logged: neither the others nor the caller may suffer."""
        try:
            callback(*arguments)
        except Exception:
            if self._failure_limit.passes()[0]:
                log.exception("a follower of the parameters failed")

    def declare(self, rows: Sequence[Parameter]) -> None:
        """Replace the parameters of the user's effects. Values that were set stay, clamped to the new ranges."""
        declare(rows)
        self.put({row.name: self._coerce_present(row) for row in rows})

    def _coerce_present(self, row: Parameter) -> Value:
        """Return the present value as ``row`` takes it, its default where it is of another type."""
        try:
            return row.coerce([self._values.get(row.name, row.default)])
        except InvalidValue:
            return row.default

    def reject(self, reason: str, origin: str) -> None:
        """Count and log unusable input, as one line of valid Unicode whatever ``reason`` quotes."""
        reason, origin = to_line(reason), to_line(origin)
        with self._lock:
            self.rejected += 1
            self.last_rejection = reason
            shown, suppressed = self._limit.passes()
        if shown:
            log.warning(
                "%s: %s%s", origin, reason, f" ({suppressed} similar messages suppressed)" if suppressed else ""
            )

    def _coerce(self, parameter: Parameter, arguments: Sequence[object]) -> Value:
        if not arguments and parameter.kind == "trigger":
            return True
        if not arguments and parameter.kind == "bool":  # a button without a value toggles
            return not self._values[parameter.name]
        return parameter.coerce(arguments)

    def _trigger(self, name: str) -> None:
        if name == "/seed/random":
            self.put({"/seed": random.randrange(2**31)})
        elif name == "/reset":
            self.put({p.name: p.default for p in TABLE.values() if p.live and p.has_value}, mixture=())
        elif name in self._triggers:
            self._triggers[name]()
