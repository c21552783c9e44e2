"""Which of the requested values can be applied: all of them, or all but those that are at fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.shared.errors import first_line
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from engine.shared.table import TABLE
from engine.worker.failures import is_device_lost

#: Values that a message names; of the others it gives the count.
MAX_NAMED_VALUES = 5


@dataclass(frozen=True)
class Applied:
    """The snapshot that is in effect, and the values that were left out of it, with the reason."""

    snapshot: Snapshot
    rejected: Mapping[str, Value] = field(default_factory=dict)
    reason: str = ""


def apply_acceptable(
    requested: Snapshot, base: Mapping[str, Value], apply: Callable[[Snapshot], object], undo: Callable[[], object]
) -> Applied:
    """Apply as much of ``requested`` as ``apply`` takes without raising.

    The live values at fault are searched by halves. Each of them keeps its value in ``base``, or is left out where
    ``base`` has none. ``undo`` is called after each failure. Where ``base`` fails as well, or the device is lost, no
    value is at fault: then the first error is raised.
    """
    try:
        apply(requested)
    except Exception as error:
        if is_device_lost(error):
            raise
        undo()
        search = _Search(requested, base, apply, undo, first_line(error))
        if not search.fits({}):
            raise
    else:
        return Applied(requested)
    changed = [name for name in requested if requested[name] != search.accepted.get(name)]
    search.add(changed, known_to_fail=not requested.mixture)
    search.fits({})  # what was tried last may have failed
    return Applied(search.snapshot({}), search.rejected, search.reason())


class _Search:
    """``accepted`` are values that were applied together, ``rejected`` those that could not be added to them."""

    def __init__(
        self,
        requested: Snapshot,
        base: Mapping[str, Value],
        apply: Callable[[Snapshot], object],
        undo: Callable[[], object],
        error: str,
    ) -> None:
        self._requested, self._apply, self._undo, self._error = requested, apply, undo, error
        self.accepted = dict(base) | {name: value for name, value in requested.items() if not is_suspect(name)}
        self.rejected: dict[str, Value] = {}

    def snapshot(self, more: Mapping[str, Value]) -> Snapshot:
        """Return the accepted values and ``more``, under the requested number and without a crossfade's mixture."""
        return Snapshot(self.accepted | dict(more), self._requested.number)

    def fits(self, more: Mapping[str, Value]) -> bool:
        """Return whether ``more`` can be applied on top of what is accepted."""
        try:
            self._apply(self.snapshot(more))
        except Exception as error:
            if is_device_lost(error):
                raise
            self._undo()
            return False
        return True

    def add(self, names: Sequence[str], known_to_fail: bool = False) -> None:
        """Accept the requested values of ``names`` as far as they fit."""
        values = {name: self._requested[name] for name in names}
        if not known_to_fail and self.fits(values):
            self.accepted.update(values)
        elif len(names) == 1:
            self.rejected.update(values)
        elif names:
            self.add(names[: len(names) // 2])
            self.add(names[len(names) // 2 :])

    def reason(self) -> str:
        """Return one line that names the values that were left out."""
        named = [f"{name} {str(value)[:40]!r}" for name, value in self.rejected.items()]
        more = f" and {len(named) - MAX_NAMED_VALUES} more" if len(named) > MAX_NAMED_VALUES else ""
        return f"the engine cannot use {', '.join(named[:MAX_NAMED_VALUES])}{more}: {self._error}"


def is_suspect(name: str) -> bool:
    """Return whether a value of the parameter may keep a snapshot from being applied: it is live and the engine's."""
    row = TABLE.get(name)
    return row is None or (row.live and row.where == "engine")  # users' effects have no row in the engine's process


def default_values(requested: Snapshot) -> dict[str, Value]:
    """Return the defaults of the live values of ``requested``; those of users' effects are left out."""
    return {name: TABLE[name].default for name in requested if name in TABLE and is_suspect(name)}
