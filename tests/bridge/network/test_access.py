"""Access control from outside: other networks, host names, sites, and requests without the token."""

from __future__ import annotations

import json
import os
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bridge.control.map_file import load_map
from bridge.control.state import State
from bridge.network.access import AccessPolicy, confine_files
from bridge.network.discovery import local_addresses
from bridge.osc.subscriptions import encode_message
from bridge.osc.tcp import TcpServer
from bridge.osc.udp import UdpServer
from bridge.panel.server import PanelServer
from bridge.performance.cue_list import load_cue_list
from bridge.performance.presets import PresetLibrary
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from tests.waiting import until

OUTSIDE = next((address for address in local_addresses() if not address.startswith("127.")), "")
needs_network = pytest.mark.skipif(not OUTSIDE, reason="this machine has only the loopback address")


@pytest.mark.parametrize(
    ("host", "allow", "inside", "outside"),
    [
        (
            "127.0.0.1",
            (),
            ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"],
            ["192.168.1.5", "8.8.8.8", "", "nonsense", "fe80::1%eth0"],
        ),
        (
            "0.0.0.0",
            (),
            ["127.0.0.1", "192.168.1.5", "10.1.2.3", "172.31.0.1", "fe80::1%eth0"],
            ["8.8.8.8", "172.32.0.1", "2001:db8::1"],
        ),
        (
            "0.0.0.0",
            ("192.168.1.0/24, 10.0.0.7",),
            ["192.168.1.200", "10.0.0.7", "127.0.0.1"],
            ["192.168.2.1", "10.0.0.8", "8.8.8.8"],
        ),
        ("0.0.0.0", ("0.0.0.0/0",), ["8.8.8.8"], ["2001:db8::1"]),
    ],
)
def test_which_networks_are_admitted(host: str, allow: tuple[str, ...], inside: list[str], outside: list[str]) -> None:
    access = AccessPolicy(host, allow)
    assert [address for address in inside if not access.admits(address)] == []
    assert [address for address in outside if access.admits(address)] == []


def test_an_exposed_show_needs_a_token_except_from_this_machine() -> None:
    assert AccessPolicy().token == ""
    exposed = AccessPolicy("0.0.0.0")
    assert len(exposed.token) >= 16
    assert AccessPolicy("0.0.0.0").token != exposed.token
    assert exposed.trusts("127.0.0.1", "")
    assert exposed.trusts("192.168.1.5", exposed.token)
    for wrong in ("", "x", exposed.token[:-1], exposed.token + "x", "ä"):
        assert not exposed.trusts("192.168.1.5", wrong)
    assert AccessPolicy("0.0.0.0", token="mine").trusts("192.168.1.5", "mine")


def test_a_malformed_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        AccessPolicy("0.0.0.0", ["nonsense"])


def test_known_host_names() -> None:
    access = AccessPolicy("0.0.0.0")
    host_name = socket.gethostname().lower().split(".")[0]
    assert all(
        access.is_known_host(name)
        for name in (
            "localhost",
            "127.0.0.1",
            "192.168.1.5",
            "[::1]",
            host_name,
            host_name.upper(),
            f"{host_name}.local",
        )
    )
    assert not any(
        access.is_known_host(name) for name in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example")
    )


class House:
    """A show that never starts its engine, listening on every interface."""

    def __init__(self, access: AccessPolicy) -> None:
        self.state = State()
        self.show = Show(self.state, open_source("pattern:still"), [], EngineOptions("cpu"), presets=[])
        self.udp = UdpServer(self.show.osc, "0.0.0.0", 0, access)
        self.tcp = TcpServer(self.show.osc, "0.0.0.0", 0, access)
        self.panel = PanelServer(self.show, "0.0.0.0", 0, self.udp.port, access)

    def ask(self, path: str, address: str = OUTSIDE, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        request = urllib.request.Request(f"http://{address}:{self.panel.port}{path}", headers=headers)
        opener = urllib.request.build_opener(Plain)
        try:
            with opener.open(request, timeout=5) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def close(self) -> None:
        self.panel.close()
        self.udp.close()
        self.tcp.close()
        self.show.close()


class Plain(urllib.request.HTTPRedirectHandler):
    """Returns the redirect itself instead of following it."""

    def redirect_request(self, *_: object) -> None:  # type: ignore[override]
        return None


@pytest.fixture
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    house = House(getattr(request, "param", None) or AccessPolicy("0.0.0.0", [OUTSIDE or "127.0.0.1"], "secret"))
    yield house
    house.close()


HTML = {"Accept": "text/html"}


@needs_network
def test_without_the_token_panel_and_images_are_forbidden(house: House) -> None:
    for path in ("/", "/panel", "/panel.js", "/status.json", "/output.jpg", "/output.mjpg", "/thumbnails/lava.jpg"):
        code, body, _ = house.ask(path, **HTML)
        assert (code, b"token" in body) == (401, True), path
    for token in ("wrong", "secre", "secrets"):
        assert house.ask(f"/?token={token}", **HTML)[0] == 401
        assert house.ask("/status.json", Authorization=f"Bearer {token}")[0] == 401
        assert house.ask("/status.json", Cookie=f"phosphene_token={token}")[0] == 401


@needs_network
def test_the_browser_needs_the_token_once(house: House) -> None:
    code, _, headers = house.ask("/?token=secret", **HTML)
    assert (code, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert house.ask("/", Cookie=cookie.split(";")[0], **HTML)[0] == 200
    assert house.ask("/status.json", Authorization="Bearer secret")[0] == 200
    assert house.ask("/", "127.0.0.1", **HTML)[0] == 200, "no token on this machine"


@needs_network
def test_every_admitted_client_may_read_the_tree(house: House) -> None:
    code, body, _ = house.ask("/phosphene/prompt")
    assert code == 200
    assert json.loads(body)["VALUE"] == ["neon tunnel, magenta and cyan"]
    assert house.ask("/health")[0] == 503
    assert b"phosphene_refused_total 0" in house.ask("/metrics")[1]


@needs_network
def test_a_websocket_without_the_token_may_listen_but_not_change(house: House) -> None:
    import asyncio

    async def play() -> None:
        base = f"http://{OUTSIDE}:{house.panel.port}"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await session.ws_connect(f"{base}/panel")
            listener = await session.ws_connect(f"{base}/")
            await listener.send_json({"COMMAND": "LISTEN", "DATA": "/phosphene/strength"})
            await listener.send_bytes(encode_message("/phosphene/strength", 0.9))
            await asyncio.to_thread(until, lambda: house.state.rejected == 1)
            assert house.state.snapshot().real("/strength") == 0.5
            house.state.set("/strength", [0.3], "here")
            update = await asyncio.wait_for(listener.receive_bytes(), 5)
            assert update.startswith(b"/phosphene/strength")
            friend = await session.ws_connect(f"{base}/", headers={"Authorization": "Bearer secret"})
            await friend.send_bytes(encode_message("/phosphene/strength", 0.75))
            await asyncio.to_thread(until, lambda: house.state.snapshot().real("/strength") == 0.75)
            panel = await session.ws_connect(f"{base}/panel", headers={"Cookie": "phosphene_token=secret"})
            await panel.send_json({"set": "/strength", "value": 0.1})
            await asyncio.to_thread(until, lambda: house.state.snapshot().real("/strength") == 0.1)

    asyncio.run(play())


def test_other_sites_and_host_names_are_rejected_locally_too(house: House) -> None:
    assert house.ask("/", "127.0.0.1", Origin="http://evil.example", **HTML)[0] == 403
    assert house.ask("/", "127.0.0.1", Host="evil.example", **HTML)[0] == 403
    assert (
        house.ask(
            "/phosphene",
            "127.0.0.1",
            Host=f"evil.example:{house.panel.port}",
            Origin=f"http://evil.example:{house.panel.port}",
        )[0]
        == 403
    )
    origin = f"http://127.0.0.1:{house.panel.port}"
    assert house.ask("/", "127.0.0.1", Origin=origin, **HTML)[0] == 200


@needs_network
@pytest.mark.parametrize("house", [AccessPolicy("0.0.0.0", ["203.0.113.0/24"], "secret")], indirect=True)
def test_another_network_is_rejected_by_udp_tcp_and_http(house: House) -> None:
    message = encode_message("/phosphene/strength", 0.9)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((OUTSIDE, 0))
        sender.sendto(message, (OUTSIDE, house.udp.port))
        until(lambda: house.state.rejected == 1)
    with socket.create_connection((OUTSIDE, house.tcp.port), timeout=5) as client:
        client.sendall(struct.pack(">i", len(message)) + message)
        try:
            assert client.recv(10) == b"", "it was disconnected"
        except ConnectionResetError:
            pass  # disconnected as well
    assert house.ask("/phosphene/strength", Authorization="Bearer secret")[0] == 403
    assert house.state.snapshot().real("/strength") == 0.5
    assert house.state.rejected == 2
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.sendto(message, ("127.0.0.1", house.udp.port))
        until(lambda: house.state.snapshot().real("/strength") == pytest.approx(0.9))


def test_other_machines_may_name_files_only_in_open_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened, closed = tmp_path / "loras", tmp_path / "home"
    for folder in (opened, closed):
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(b"x")
    (opened / "link.safetensors").symlink_to(closed / "a.safetensors")
    state = State()
    state.confine = confine_files([opened])
    for good in (str(opened / "a.safetensors"), "neon", "stabilityai/sd-turbo", "loras/a.safetensors", ""):
        assert state.set("/lora/1", [good], "desk"), state.last_rejection
    for bad in (
        str(closed / "a.safetensors"),
        "/etc/passwd",
        "~/x",
        "../home/a.safetensors",
        "home/a.safetensors",
        "loras/../home/a.safetensors",
        str(opened / "link.safetensors"),
        "a\0b",
    ):
        for name in ("/lora/1", "/control/2", "/reference", "/model", "/fallback/still"):
            before = state.snapshot()[name]
            assert not state.set(name, [bad], "desk"), f"{name} {bad}"
            assert state.snapshot()[name] == before
    assert state.set("/prompt", ["/etc/passwd"], "desk"), "a prompt is not a file"


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "/etc/evil", "a\\b", "x" * 300, "nul\0l"])
def test_a_name_cannot_escape_its_folder(name: str, tmp_path: Path) -> None:
    library = PresetLibrary([tmp_path / "presets"])
    with pytest.raises(InvalidValue):
        library.save(name, {"/strength": 0.5})
    with pytest.raises(InvalidValue):
        load_cue_list(name, [tmp_path])
    with pytest.raises(InvalidValue):
        load_map(name, tmp_path)
    assert library.thumbnail(name) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_token_that_is_no_unicode_is_a_wrong_one() -> None:
    access = AccessPolicy("0.0.0.0", ("10.0.0.0/8",), "right")
    assert not access.trusts("10.0.0.1", "\udcff")
    assert access.trusts("10.0.0.1", "right")


def test_a_file_name_is_judged_without_the_disk_outside_the_open_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = tmp_path / "loras"
    opened.mkdir()
    check = confine_files([opened])
    touched: list[str] = []

    for name in ("stat", "lstat", "open", "scandir", "readlink"):
        monkeypatch.setattr(os, name, lambda path, *_: touched.append(str(path)))
    for bad in ("/net/somewhere/a.png", "../a", "~nobody/a", "~/a", "loras/../../a", "C:\\a", "//server/share/a"):
        with pytest.raises(InvalidValue):
            check(bad)
    check("neon")
    check("stabilityai/sd-turbo")
    monkeypatch.undo()
    assert touched == []
