"""The parameters' values as the show has them now. Every way in (OSC, panel, command line) ends here."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence

from bridge.rate_limit import RateLimit
from engine.shared.parameter import InvalidValue, Parameter, Value
from engine.shared.snapshot import Mixture, Snapshot
from engine.shared.table import FILES, TABLE, declare, lookup

log = logging.getLogger(__name__)


class State:
    """Values checked by the table, numbered snapshots of them, and a count of what was refused. Thread-safe."""

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._lock = threading.RLock()
        self._values = dict(Snapshot(values))
        self._number = 1
        self._limit = RateLimit()
        self._listeners: list[Callable[[], None]] = []
        self._followers: list[Callable[[frozenset[str], str], None]] = []
        self._handlers: dict[str, Callable[[], None]] = {}
        self._commands: dict[str, Callable[[str], None]] = {}
        self._mixture: Mixture = ()
        self._over: dict[str, Value] = {}
        self._taken: tuple[Snapshot, Snapshot] | None = None
        self.refused = self.accepted = 0
        self.last_refusal = ""
        self.confine: Callable[[str], None] = lambda _text: None

    def snapshot(self) -> Snapshot:
        """Every value at this moment, under its number."""
        return self._now()[0]

    def effective(self) -> Snapshot:
        """The same with what modulators lay over it: what is seen."""
        return self._now()[1]

    def _now(self) -> tuple[Snapshot, Snapshot]:
        """The snapshots of this moment: without what is laid over, and with it. Many ask, many times for each change."""
        with self._lock:
            if self._taken is None or self._taken[0].number != self._number:
                plain = Snapshot(self._values, self._number, self._mixture)
                seen = Snapshot(self._values | self._over, self._number, self._mixture) if self._over else plain
                self._taken = plain, seen
            return self._taken

    def overlay(self, values: Mapping[str, Value]) -> None:
        """Lays values over those that were set, in the place of what was laid over them before."""
        with self._lock:
            if values == self._over:
                return
            self._over = dict(values)
            self._number += 1
        for listener in self._listeners:
            listener()

    @property
    def number(self) -> int:
        """Goes up with every change."""
        return self._number

    def on_change(self, listener: Callable[[], None]) -> None:
        """``listener`` is called after every change, on the thread that made it; it must be quick."""
        self._listeners.append(listener)

    def on_set(self, follower: Callable[[frozenset[str], str], None]) -> None:
        """``follower`` is called after every change with the names that changed and who changed them; it must be quick."""
        self._followers.append(follower)

    def on_command(self, name: str, handler: Callable[[str], None]) -> None:
        """``handler`` does what the command ``name`` is for; a BadValue that it raises is refused as the command's."""
        self._commands[name] = handler

    def on_trigger(self, name: str, handler: Callable[[], None]) -> None:
        """``handler`` does what the trigger ``name`` is for, on the thread that pulled it."""
        self._handlers[name] = handler

    def set(self, name: str, arguments: Sequence[object], origin: str) -> bool:
        """Sets one parameter from what came in; what cannot be meant is refused: counted, logged at a limited rate, nothing changes."""
        try:
            parameter = lookup(name)
            value = self._meant(parameter.name, arguments)
            if parameter.name in FILES:
                self.confine(str(value))
            if parameter.kind == "command" and parameter.name in self._commands:
                self._commands[parameter.name](str(value))
        except InvalidValue as error:
            self.refuse(str(error), origin)
            return False
        if parameter.kind == "trigger":
            if value:
                self._trigger(parameter.name)
        elif parameter.holds:
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
        """Sets values that are already checked, all at once, and the mixture where one is given.

        A value that is not as ``expected`` is left as it is: somebody was quicker.
        """
        with self._lock:
            fresh = {name: value for name, value in values.items() if self._values.get(name) != value}
            if expected is not None:
                fresh = {
                    name: value
                    for name, value in fresh.items()
                    if name not in expected or self._values.get(name) == expected[name]
                }
            if not fresh and mixture in (None, self._mixture):
                return
            self._values.update(fresh)
            self._mixture = self._mixture if mixture is None else mixture
            self._number += 1
        for listener in self._listeners:
            listener()
        for follower in self._followers:
            follower(frozenset(fresh), by)

    def declare(self, rows: Sequence[Parameter]) -> None:
        """Takes the parameters of the user's effects, in the place of those before; values that were set stay."""
        declare(rows)
        self.put({row.name: self._values.get(row.name, row.default) for row in rows})

    def refuse(self, reason: str, origin: str) -> None:
        """Counts and logs something that could not be used."""
        with self._lock:
            self.refused += 1
            self.last_refusal = reason
            shown, held = self._limit.passes()
        if shown:
            log.warning("%s: %s%s", origin, reason, f" ({held} more like this were not shown)" if held else "")

    def _meant(self, name: str, arguments: Sequence[object]) -> Value:
        parameter = TABLE[name]
        if not arguments and parameter.kind == "trigger":
            return True
        if not arguments and parameter.kind == "bool":  # a button without a value toggles
            return not self._values[name]
        return parameter.coerce(arguments)

    def _trigger(self, name: str) -> None:
        if name == "/seed/random":
            self.put({"/seed": random.randrange(2**31)})
        elif name == "/reset":
            self.put({p.name: p.default for p in TABLE.values() if p.live and p.holds}, mixture=())
        elif name in self._handlers:
            self._handlers[name]()
