"""The HTTP port, without an engine: OSCQuery by a client written from its specification, and the panel's WebSocket."""

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
    """Serve a show that is not open: no engine, no threads."""
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    server = PanelServer(show, "127.0.0.1", 0, osc_port=9000)
    yield server
    server.close()
    show.close()


def get(server: PanelServer, path: str, accept: str = "*/*", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers={"Accept": accept, **headers})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get_json(server: PanelServer, path: str) -> Any:
    status, body = get(server, path)
    assert status == 200, body
    return json.loads(body)


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "TYPE" in node:
        yield node
    for inside in node.get("CONTENTS", {}).values():
        yield from leaves(inside)


def test_the_tree_holds_the_whole_table(server: PanelServer) -> None:
    nodes = {node["FULL_PATH"]: node for node in leaves(get_json(server, "/"))}
    assert {path for path in nodes if not path.startswith(f"{ROOT}/status/")} == {ROOT + name for name in TABLE}
    for name, parameter in TABLE.items():
        node = nodes[ROOT + name]
        assert node["DESCRIPTION"] == parameter.help
        assert node["ACCESS"] == (3 if parameter.has_value else 2)
        assert ("VALUE" in node) == parameter.has_value
        if parameter.kind in ("float", "int"):
            assert node["RANGE"] == [{"MIN": parameter.low, "MAX": parameter.high}]
        if parameter.kind == "choice":
            assert node["RANGE"] == [{"VALS": list(parameter.choices)}]
        assert get_json(server, ROOT + name) == node, "every node by its own path"
    assert nodes[f"{ROOT}/status/fps"]["ACCESS"] == 1


def test_attributes_host_and_mistakes_are_answered_as_the_proposal_says(server: PanelServer) -> None:
    assert get_json(server, f"{ROOT}/strength?VALUE") == {"VALUE": [0.5]}
    assert get_json(server, f"{ROOT}/tempo?UNIT") == {"UNIT": ["bpm"]}
    host = get_json(server, "/?HOST_INFO")
    assert (host["OSC_PORT"], host["OSC_TRANSPORT"], host["EXTENSIONS"]["LISTEN"]) == (9000, "UDP", True)
    assert get(server, f"{ROOT}/nowhere")[0] == 404
    assert get(server, f"{ROOT}/strength?UNIT")[0] == 204
    assert get(server, f"{ROOT}/strength?COLOUR")[0] == 400
    status, page = get(server, "/", accept="text/html,*/*;q=0.8")
    assert status == 200
    assert b"<!doctype html>" in page
    assert json.loads(get(server, "/")[1])["FULL_PATH"] == "/", "one port for both"


def test_another_sites_page_is_rejected(server: PanelServer) -> None:
    assert get(server, "/status.json", Origin="http://evil.example")[0] == 403
    assert get(server, "/status.json", Origin=f"http://127.0.0.1:{server.port}")[0] == 200

    async def connect_from_there() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                await session.ws_connect(
                    f"http://127.0.0.1:{server.port}/panel", headers={"Origin": "http://evil.example"}
                )
            except aiohttp.WSServerHandshakeError as error:
                return error.status
        return 0

    assert asyncio.run(connect_from_there()) == 403


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
            state.set("/strength", [0.9], "a test")
            state.set("/mix", [0.125], "a test")
            message = OscMessage((await ws.receive(5)).data)
            heard.append((message.address, message.params[0]))
            for malformed in ("[]", "{", '{"COMMAND": "DANCE", "DATA": "/"}', '{"COMMAND": "LISTEN"}'):
                await ws.send_str(malformed)
            await ws.send_bytes(b"\xff")
            await ws.send_bytes(encode_message(f"{ROOT}/steps", 3))
            for _ in range(100):
                if state.snapshot().whole("/steps") == 3:
                    break
                await asyncio.sleep(0.02)
        return heard

    assert asyncio.run(client()) == [(f"{ROOT}/strength", 0.25), (f"{ROOT}/mix", 0.125)]
    assert state.snapshot().whole("/steps") == 3, "malformed messages end nothing"
    assert state.rejected == 5


def test_panels_stay_in_step_and_requests_are_checked(server: PanelServer) -> None:
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
            for request in (
                '{"set": "/strength", "value": 0.75}',
                '{"set": "/steps", "value": "many"}',
                '{"set": 3}',
                "nonsense",
                '["set"]',
            ):
                await one.send_str(request)
            await one.send_str('{"set": "/freeze"}')  # without a value: a toggle
            heard: list[dict[str, Any]] = []
            end = time.perf_counter() + 5
            while time.perf_counter() < end:
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


def test_a_change_during_a_broadcast_is_sent_in_the_next(server: PanelServer) -> None:
    """It was lost where a broadcast collected the changes before the loop had noted it."""

    async def watch() -> list[int]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{server.port}/panel") as ws,
        ):
            await ws.receive_json()
            change = asyncio.run_coroutine_threadsafe(change_during_broadcast(), server._loop)
            await asyncio.wrap_future(change)
            seeds: list[int] = []
            until = time.perf_counter() + 3
            while not seeds and time.perf_counter() < until:  # the status comes twice a second in any case
                news = await asyncio.wait_for(ws.receive_json(), 5)
                seeds += [news["values"]["/seed"]] if "/seed" in news.get("values", {}) else []
            return seeds

    async def change_during_broadcast() -> None:
        server._show.state.put({"/seed": 4711})
        server._sockets._changed = set()  # as a broadcast does

    assert asyncio.run(watch()) == [4711]


def test_jpegs_are_encoded_once_for_all_viewers(server: PanelServer) -> None:
    show = server._show
    assert get(server, "/output.jpg")[0] == 404
    show.presenter.output = Frame(np.full((64, 64, 4), 200, np.uint8))
    assert get(server, "/output.jpg")[1][:2] == b"\xff\xd8"

    async def watch() -> list[int]:
        async def one(session: aiohttp.ClientSession) -> int:
            seen = 0
            async with session.get(f"http://127.0.0.1:{server.port}/output.mjpg") as answer:
                end = time.perf_counter() + 2.0
                while time.perf_counter() < end:
                    seen += (await answer.content.readuntil(b"--frame\r\n")).count(b"--frame")
            return seen

        async def move() -> None:
            for i in range(60):
                show.presenter.output = Frame(np.full((64, 64, 4), i, np.uint8), i)
                await asyncio.sleep(0.04)

        async with aiohttp.ClientSession() as session:
            seen, _ = await asyncio.gather(asyncio.gather(*(one(session) for _ in range(8))), move())
        return seen

    seen = asyncio.run(watch())
    preview = server._previews["output"]
    assert min(seen) >= 10
    assert preview.encoded <= 2.6 * 12 + 2, "at a limited rate, and once for all viewers"
    end = time.perf_counter() + 3
    while preview.viewers and time.perf_counter() < end:
        time.sleep(0.02)
    assert preview.viewers == 0
    encoded = preview.encoded
    time.sleep(0.3)
    show.presenter.output = Frame(np.full((64, 64, 4), 7, np.uint8), 99)
    time.sleep(0.3)
    assert preview.encoded == encoded, "without viewers nothing is encoded"


def test_only_thumbnails_of_presets_are_served(server: PanelServer) -> None:
    status, picture = get(server, "/thumbnails/neon-tunnel.jpg")
    assert (status, picture[:2]) == (200, b"\xff\xd8")
    for path in ("/thumbnails/nothing.jpg", "/thumbnails/..%2f..%2fpyproject.jpg", "/thumbnails/%2e%2e/picture.jpg"):
        assert get(server, path)[0] == 404


def test_metrics_are_served_with_the_formats_content_type(server: PanelServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert b"phosphene_frames_total 0.0" in answer.read()


@pytest.mark.parametrize("name", ["panel.css", "panel.js", "connection.js", "controls.js", "regions.js"])
def test_the_pages_files_are_served(server: PanelServer, name: str) -> None:
    status, body = get(server, f"/{name}")
    assert status == 200
    assert max(map(len, body.decode().splitlines())) <= 120
