"""Which values to give up when engines end without a word while they begin with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.engine_process.model_fallback import MAX_DEATHS
from engine.shared.parameter import Value
from engine.shared.table import RELOAD_PARAMETERS, TABLE

#: Values that a message names; of the others it gives the count.
MAX_NAMED_VALUES = 5
#: An engine that ends within this time of its readiness, before it reports a frame, has ended as it began, in seconds.
EARLY_SECONDS = 1.0


@dataclass(frozen=True)
class Retreat:
    """Values to set in place of ``instead_of``, with which engines end."""

    values: Mapping[str, Value]
    instead_of: Mapping[str, Value]

    def __str__(self) -> str:
        if "/model" in self.values:
            return f"model {self.instead_of['/model']} does not work; back to {self.values['/model']}"
        pairs = [f"{name} {str(self.instead_of[name])[:40]!r}" for name in self.values]
        more = f" and {len(pairs) - MAX_NAMED_VALUES} more" if len(pairs) > MAX_NAMED_VALUES else ""
        return f"engines end as they begin; taken back: {', '.join(pairs[:MAX_NAMED_VALUES])}{more}"


class ValueFallback:
    """Counts engines that end as they begin; remembers the values with which one last ran well and last began.

    A value that a running engine takes may still be one that none can begin with.

    An engine that reports why it cannot begin has tried without its live values: its failure counts for the model.
    """

    def __init__(self) -> None:
        self.last_good: Mapping[str, Value] = {}
        self.last_begun: Mapping[str, Value] = {}
        self.deaths = self.failures = 0

    def record_success(self, values: Mapping[str, Value]) -> None:
        """Note that an engine has run well for some time with these values."""
        self.deaths, self.failures, self.last_good = 0, 0, values

    def record_begin(self, values: Mapping[str, Value]) -> None:
        """Note that an engine has begun with these values and lives."""
        self.deaths, self.failures, self.last_begun = 0, 0, values

    def record_death(self) -> None:
        """Note that an engine has ended as it began."""
        self.deaths += 1

    def record_failure(self) -> None:
        """Note that an engine has reported why it cannot begin."""
        self.failures += 1

    def gives_up(self, values: Mapping[str, Value]) -> bool:
        """Return whether no engine has ever begun, several have failed, and only the model is left to be changed."""
        if self.last_begun or self.last_good or max(self.deaths, self.failures) < MAX_DEATHS:
            return False
        return all(set(step.values) <= set(RELOAD_PARAMETERS) for step in self.retreats(values))

    def retreats(self, values: Mapping[str, Value]) -> list[Retreat]:
        """Return the steps back from ``values`` that are left, in their order; none before MAX_DEATHS deaths.

        First go the live values that changed since an engine last ran well, then the model likewise, then what changed
        since an engine last began, then every live value, and last the model for the built-in one. After MAX_DEATHS
        deaths each further one is another step.
        """
        live = {name: row.default for name, row in TABLE.items() if row.live and row.where == "engine"}
        live = {name: default for name, default in live.items() if name in values}
        model = {name: TABLE[name].default for name in RELOAD_PARAMETERS}
        steps: list[dict[str, Value]] = []
        if self.deaths >= MAX_DEATHS:
            good, begun = self.last_good, self.last_begun
            steps = [_select(good, live), _select(good, model), _select(begun, live), live, model]
        elif self.failures >= MAX_DEATHS and not self.last_good:
            steps = [model]
        changes = [{name: value for name, value in step.items() if values[name] != value} for step in steps]
        return [Retreat(change, values) for change in changes if change]


def _select(values: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    return {name: values[name] for name in names if name in values}
