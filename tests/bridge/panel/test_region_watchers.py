"""Maps of the regions for panels that ask: the newest alone, and no work for the engine where none does."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from bridge.control.state import State
from bridge.panel.server import PanelServer
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.messages import RegionMap
from engine.shared.options import EngineOptions

Panel = aiohttp.ClientWebSocketResponse
MAPS = [RegionMap(2, 3, bytes([255, 0, 0, 255, 0, i]), 0.5) for i in (0, 255)]


@pytest.fixture
def server() -> Iterator[PanelServer]:
    """Serve a show that is not open: what the engine would send is set by the tests."""
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    server = PanelServer(show, "127.0.0.1", 0)
    yield server
    server.close()
    show.close()


def run(server: PanelServer, work: Callable[[Panel, Panel], Awaitable[None]]) -> None:
    """Run ``work`` with two panels."""

    async def connect() -> None:
        url = f"http://127.0.0.1:{server.port}/panel"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as one, session.ws_connect(url) as other:
            await work(one, other)

    asyncio.run(connect())


async def next_map(panel: Panel) -> dict[str, Any]:
    """Return the next map that a panel receives."""
    while True:
        message = json.loads((await panel.receive(5)).data)
        if "regions" in message:
            return dict(message["regions"])


async def next_statuses(panel: Panel, count: int) -> list[dict[str, Any]]:
    """Return all messages up to the given number of reports, two a second."""
    messages: list[dict[str, Any]] = []
    while sum("status" in message for message in messages) < count:
        messages.append(json.loads((await panel.receive(5)).data))
    return messages


def test_only_a_panel_that_asks_gets_maps_and_only_until_it_stops(server: PanelServer) -> None:
    supervisor = server._show.supervisor

    async def work(one: Panel, other: Panel) -> None:
        assert not supervisor._watches_regions
        await one.send_str('{"regions": true}')
        assert await next_map(one) == {"rows": 0, "columns": 0, "share": 1.0, "cells": ""}
        assert supervisor._watches_regions
        for expected in MAPS:
            supervisor.region_map = expected
            received = await next_map(one)
            assert (received["rows"], received["columns"], received["share"]) == (2, 3, 0.5)
            assert b64decode(received["cells"]) == expected.cells
        await other.send_str('{"regions": true}')
        assert b64decode((await next_map(other))["cells"]) == MAPS[1].cells, "at once, though it is not new"
        await one.send_str('{"regions": false}')
        while len(server._sockets._region_watchers._outboxes) > 1:
            await next_statuses(one, 1)
        supervisor.region_map = MAPS[0]
        assert b64decode((await next_map(other))["cells"]) == MAPS[0].cells
        assert not [message for message in await next_statuses(one, 2) if "regions" in message]
        await other.send_str('{"regions": false}')
        while supervisor._watches_regions:
            await next_statuses(other, 1)
        assert supervisor.region_map is None
        assert not [message for message in await next_statuses(other, 2) if "regions" in message]

    run(server, work)


def test_a_panel_that_leaves_asks_no_more(server: PanelServer) -> None:
    async def work(one: Panel, other: Panel) -> None:
        await one.send_str('{"regions": true}')
        await next_map(one)
        await one.close()
        while server._show.supervisor._watches_regions:
            await next_statuses(other, 1)

    run(server, work)


def test_the_same_map_is_sent_once(server: PanelServer) -> None:
    async def work(one: Panel, _: Panel) -> None:
        await one.send_str('{"regions": true}')
        await next_map(one)
        server._show.supervisor.region_map = MAPS[0]
        maps = [message for message in await next_statuses(one, 4) if "regions" in message]
        assert len(maps) == 1

    run(server, work)


@pytest.mark.parametrize("request_text", ['{"regions": "yes"}', '{"regions": 1}', '{"regions": null}', '["regions"]'])
def test_a_malformed_request_is_rejected(server: PanelServer, request_text: str) -> None:
    async def work(one: Panel, _: Panel) -> None:
        await one.send_str(request_text)
        while not server._show.state.rejected:
            await next_statuses(one, 1)

    run(server, work)
    assert not server._show.supervisor._watches_regions
