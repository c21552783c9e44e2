"""The panels that show which regions are computed. The engine reports that only while there are any."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from bridge.engine_process.supervisor import Supervisor
from bridge.panel.outbox import Outbox
from engine.shared.messages import RegionMap


class RegionWatchers:
    """Sends the newest map of the engine's tokens to the panels that asked. Belongs to the event loop.

    A panel that reads slowly gets the newest map when it comes to it, and none of those between.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._outboxes: set[Outbox] = set()
        self._sent: RegionMap | None = None

    def watch(self, outbox: Outbox, is_on: bool) -> None:
        """Send maps to a panel from now on, beginning with the present one, or no more."""
        if is_on == (outbox in self._outboxes):
            return
        if is_on:
            self._outboxes.add(outbox)
            outbox.put({"regions": describe_map(self._supervisor.region_map)})
        else:
            self._outboxes.discard(outbox)
        self._supervisor.watch_regions(bool(self._outboxes))

    def send_newest(self) -> None:
        """Send the engine's map where it is a new one."""
        newest = self._supervisor.region_map
        if newest is self._sent:
            return
        self._sent = newest
        if self._outboxes:
            update = {"regions": describe_map(newest)}
            for outbox in self._outboxes:
                outbox.put(update)


def describe_map(region_map: RegionMap | None) -> dict[str, Any]:
    """Return a map as the panel reads it, with its cells in Base64; no rows where everything is computed."""
    region_map = region_map or RegionMap()
    return {
        "rows": region_map.rows,
        "columns": region_map.columns,
        "share": region_map.share,
        "cells": b64encode(region_map.cells).decode("ascii"),
    }
