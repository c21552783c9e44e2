"""The HTTP port: OSCQuery by a client written from its specification, and the panel's own WebSocket, without an engine."""

from __future__ import annotations

import asyncio
import json
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from pythonosc.osc_message import OscMessage

from bridge.control.state import State
from bridge.osc.subscriptions import encode_message
from bridge.panel.server import PanelServer
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.table import ROOT, TABLE


@pytest.fixture
def server() -> Iterator[PanelServer]:
    """A panel for a show that has not been opened: no engine, no threads of its own."""
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    made = PanelServer(show, "127.0.0.1", 0, osc_port=9000)
    yield made
    made.close()
    show.close()


def get(server: PanelServer, path: str, accept: str = "*/*", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers={"Accept": accept, **headers})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def asked(server: PanelServer, path: str) -> Any:
    status, body = get(server, path)
    assert status == 200, body
    return json.loads(body)


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "TYPE" in node:
        yield node
    for inside in node.get("CONTENTS", {}).values():
        yield from leaves(inside)


def test_the_whole_tree_is_browsed_and_says_what_the_table_says(server: PanelServer) -> None:
    found = {node["FULL_PATH"]: node for node in leaves(asked(server, "/"))}
    assert {path for path in found if not path.startswith(f"{ROOT}/status/")} == {ROOT + name for name in TABLE}
    for name, parameter in TABLE.items():
        node = found[ROOT + name]
        assert node["DESCRIPTION"] == parameter.help
        assert node["ACCESS"] == (3 if parameter.has_value else 2)
        assert ("VALUE" in node) == parameter.has_value
        if parameter.kind in ("float", "int"):
            assert node["RANGE"] == [{"MIN": parameter.low, "MAX": parameter.high}]
        if parameter.kind == "choice":
            assert node["RANGE"] == [{"VALS": list(parameter.choices)}]
        assert asked(server, ROOT + name) == node, "every node by its own path"
    assert found[f"{ROOT}/status/fps"]["ACCESS"] == 1


def test_attributes_host_and_mistakes_are_answered_as_the_proposal_says(server: PanelServer) -> None:
    assert asked(server, f"{ROOT}/strength?VALUE") == {"VALUE": [0.5]}
    assert asked(server, f"{ROOT}/tempo?UNIT") == {"UNIT": ["bpm"]}
    host = asked(server, "/?HOST_INFO")
    assert (host["OSC_PORT"], host["OSC_TRANSPORT"], host["EXTENSIONS"]["LISTEN"]) == (9000, "UDP", True)
    assert get(server, f"{ROOT}/nowhere")[0] == 404
    assert get(server, f"{ROOT}/strength?UNIT")[0] == 204
    assert get(server, f"{ROOT}/strength?COLOUR")[0] == 400
    status, page = get(server, "/", accept="text/html,*/*;q=0.8")
    assert status == 200
    assert b"<!doctype html>" in page
    assert json.loads(get(server, "/")[1])["FULL_PATH"] == "/", "one port for both"


def test_another_sites_page_is_turned_away(server: PanelServer) -> None:
    assert get(server, "/status.json", Origin="http://evil.example")[0] == 403
    assert get(server, "/status.json", Origin=f"http://127.0.0.1:{server.port}")[0] == 200

    async def over_there() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                await session.ws_connect(
                    f"http://127.0.0.1:{server.port}/panel", headers={"Origin": "http://evil.example"}
                )
            except aiohttp.WSServerHandshakeError as error:
                return error.status
        return 0

    assert asyncio.run(over_there()) == 403


def test_an_oscquery_client_sets_a_value_and_listens(server: PanelServer) -> None:
    state = server._show.state

    async def client() -> list[tuple[str, Any]]:
        heard: list[tuple[str, Any]] = []
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{server.port}/") as ws:
            await ws.send_str(json.dumps({"COMMAND": "LISTEN", "DATA": f"{ROOT}/strength"}))
            await ws.send_str(json.dumps({"COMMAND": "LISTEN", "DATA": f"{ROOT}/mix"}))
            await ws.send_bytes(b"/phosphene/strength\0,f\0\0" + struct.pack(">f", 0.25))
            while not heard:
                message = OscMessage((await ws.receive(5)).data)
                heard.append((message.address, message.params[0]))
            await ws.send_str(json.dumps({"COMMAND": "IGNORE", "DATA": f"{ROOT}/strength"}))
            await asyncio.sleep(0.2)
            state.set("/strength", [0.9], "a hand")
            state.set("/mix", [0.125], "a hand")
            message = OscMessage((await ws.receive(5)).data)
            heard.append((message.address, message.params[0]))
            for rubbish in ("[]", "{", '{"COMMAND": "DANCE", "DATA": "/"}', '{"COMMAND": "LISTEN"}'):
                await ws.send_str(rubbish)
            await ws.send_bytes(b"\xff")
            await ws.send_bytes(encode_message(f"{ROOT}/steps", 3))
            for _ in range(100):
                if state.snapshot().whole("/steps") == 3:
                    break
                await asyncio.sleep(0.02)
        return heard

    assert asyncio.run(client()) == [(f"{ROOT}/strength", 0.25), (f"{ROOT}/mix", 0.125)]
    assert state.snapshot().whole("/steps") == 3, "rubbish ends nothing"
    assert state.rejected == 5


def test_panels_stay_in_step_and_wishes_are_checked(server: PanelServer) -> None:
    state = server._show.state

    async def two() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        address = f"http://127.0.0.1:{server.port}/panel"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address) as one,
            session.ws_connect(address) as other,
        ):
            first = json.loads((await one.receive(5)).data)
            await other.receive(5)
            for wish in (
                '{"set": "/strength", "value": 0.75}',
                '{"set": "/steps", "value": "many"}',
                '{"set": 3}',
                "nonsense",
                '["set"]',
            ):
                await one.send_str(wish)
            await one.send_str('{"set": "/freeze"}')  # without a value: a toggle
            heard: list[dict[str, Any]] = []
            end = time.monotonic() + 5
            while time.monotonic() < end:
                heard.append(json.loads((await other.receive(5)).data))
                values = {name: value for news in heard for name, value in news.get("values", {}).items()}
                if (
                    values.get("/strength") == 0.75
                    and values.get("/freeze") is True
                    and any("status" in news for news in heard)
                ):
                    break
            return first, heard

    first, heard = asyncio.run(two())
    assert [row["name"] for row in first["table"]] == list(TABLE)
    assert first["values"] == dict(State().snapshot())
    assert any("status" in news and "fps" in news["status"] for news in heard)
    assert any("/steps takes a number" in line for news in heard for line in news.get("log", []))
    assert state.rejected == 4


def test_a_change_in_the_moment_of_a_telling_is_told_in_the_next(server: PanelServer) -> None:
    """It was lost where changes were taken between its noting and its turn in the loop."""

    async def watch() -> list[int]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{server.port}/panel") as ws,
        ):
            await ws.receive_json()
            noted = asyncio.run_coroutine_threadsafe(note_while_taken(), server._loop)
            await asyncio.wrap_future(noted)
            told: list[int] = []
            until = time.monotonic() + 3
            while not told and time.monotonic() < until:  # the status comes twice a second, whatever was set
                news = await asyncio.wait_for(ws.receive_json(), 5)
                told += [news["values"]["/seed"]] if "/seed" in news.get("values", {}) else []
            return told

    async def note_while_taken() -> None:
        server._show.state.put({"/seed": 4711})
        server._changed = set()  # as a telling does

    assert asyncio.run(watch()) == [4711]


def test_pictures_are_made_once_however_many_watch(server: PanelServer) -> None:
    show = server._show
    assert get(server, "/output.jpg")[0] == 404
    show.output = Frame(np.full((64, 64, 4), 200, np.uint8))
    assert get(server, "/output.jpg")[1][:2] == b"\xff\xd8"

    async def watch() -> list[int]:
        async def one(session: aiohttp.ClientSession) -> int:
            seen = 0
            async with session.get(f"http://127.0.0.1:{server.port}/output.mjpg") as answer:
                end = time.monotonic() + 2.0
                while time.monotonic() < end:
                    seen += (await answer.content.readuntil(b"--frame\r\n")).count(b"--frame")
            return seen

        async def move() -> None:
            for i in range(60):
                show.output = Frame(np.full((64, 64, 4), i, np.uint8), i)
                await asyncio.sleep(0.04)

        async with aiohttp.ClientSession() as session:
            seen, _ = await asyncio.gather(asyncio.gather(*(one(session) for _ in range(8))), move())
        return seen

    seen = asyncio.run(watch())
    preview = server._previews["output"]
    assert min(seen) >= 10
    assert preview.made <= 2.6 * 12 + 2, "at a limited rate, and once for all"
    end = time.monotonic() + 3
    while preview.watchers and time.monotonic() < end:
        time.sleep(0.02)
    assert preview.watchers == 0
    made = preview.made
    time.sleep(0.3)
    show.output = Frame(np.full((64, 64, 4), 7, np.uint8), 99)
    time.sleep(0.3)
    assert preview.made == made, "nobody watches, nothing is made"


def test_a_presets_picture_is_served_and_nothing_else_of_its_folder(server: PanelServer) -> None:
    status, picture = get(server, "/thumbnails/neon-tunnel.jpg")
    assert (status, picture[:2]) == (200, b"\xff\xd8")
    for path in ("/thumbnails/nothing.jpg", "/thumbnails/..%2f..%2fpyproject.jpg", "/thumbnails/%2e%2e/picture.jpg"):
        assert get(server, path)[0] == 404
