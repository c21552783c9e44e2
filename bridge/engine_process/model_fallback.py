"""Which model to go back to when one cannot be loaded or ends every engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping

from engine.shared.parameter import Value
from engine.shared.table import RELOAD_PARAMETERS, TABLE

#: Early deaths in a row after which a model is given up.
MAX_DEATHS = 3


class ModelFallback:
    """Counts early deaths and remembers the values with which an engine last ran well."""

    def __init__(self) -> None:
        self.last_good: Mapping[str, Value] = {}
        self.deaths = 0
        self._rejected = False

    def record_success(self, running: Mapping[str, Value]) -> None:
        """Note that an engine has run well for some time with these values."""
        self.deaths, self.last_good = 0, dict(running)

    def record_death(self) -> None:
        """Note that an engine has ended by itself."""
        self.deaths += 1

    def record_rejection(self) -> None:
        """Note that an engine could not load the requested model."""
        self._rejected = True

    def choose(self, requested: Mapping[str, Value]) -> Mapping[str, Value] | None:
        """Return the values to go back to from ``requested``, None to try again with them.

        They are the last good ones, or the built-in model's where those are rejected themselves.
        """
        if not self._rejected and self.deaths < MAX_DEATHS:
            return None
        rejected, self._rejected = self._rejected, False
        values = self.last_good
        if rejected and values in ({}, requested):
            values = {name: TABLE[name].default for name in RELOAD_PARAMETERS}
        if not values or values == requested:
            return None
        self.deaths = 0
        return values
