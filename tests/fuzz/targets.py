"""The readers that are fuzzed, each as a function of bytes. What they may raise is BadValue and nothing else; that they do not even raise
for what comes over a network is their own promise.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bridge.control.map_file import read_map
from bridge.control.state import State
from bridge.osc import oscquery
from bridge.osc.coalesce import coalesce
from bridge.osc.dispatch import OscControl, Peer
from bridge.osc.framing import detect_framing
from bridge.osc.subscriptions import encode_message
from bridge.panel.server import PanelServer
from bridge.performance import presets
from bridge.performance import session as journal
from bridge.performance.cue_list import read_cue_list
from engine.shared.frame import Frame
from engine.shared.mailbox import SLOTS, Mailbox
from engine.shared.parameter import InvalidValue
from engine.shared.table import ROOT, TABLE, canonical

#: How many documents were accepted.
READ = [0]
CORPUS = Path(__file__).parent / "corpus"


class File:
    """Bytes where a reader expects a file."""

    name, stem = "fuzzed.toml", "fuzzed"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data


@functools.cache
def desk() -> tuple[State, OscControl]:
    """A state, and OSC control of it."""
    state = State()
    return state, OscControl(state)


def bundled(*parts: bytes) -> bytes:
    """An OSC bundle, to be done at once."""
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(struct.pack(">i", len(part)) + part for part in parts)


def osc(data: bytes) -> None:
    """A packet over UDP."""
    coalesce([(data, 1), (data, 1)])
    desk()[1].handle_packet(data, Peer("fuzz", "fuzz", lambda _packet: None))


def tcp(data: bytes) -> None:
    """A stream in either framing, in two pieces."""
    if data:
        framing = detect_framing(data[0])
        try:
            packets = framing.feed(data[: len(data) // 2]) + framing.feed(data[len(data) // 2 :])
        except ValueError:
            return  # the connection is closed with a line
        for packet in packets:
            osc(packet)


def query(data: bytes) -> None:
    """A path of OSCQuery's tree."""
    node = oscquery.find_node(tree(), data.decode("utf-8", "replace"))
    assert node is None or "FULL_PATH" in node


@functools.cache
def tree() -> Any:
    return oscquery.build_tree(State().snapshot(), {})


@functools.cache
def panel() -> Any:
    state, control = desk()
    return SimpleNamespace(_show=SimpleNamespace(state=state, osc=control))


def wish(data: bytes) -> None:
    """A message of the panel's WebSocket."""
    PanelServer._wish(panel(), data.decode("utf-8", "replace"), "fuzz")


def listen(data: bytes) -> None:
    """A message of OSCQuery's WebSocket."""
    PanelServer._heed(panel(), data.decode("utf-8", "replace"), set(), "fuzz")


def preset(data: bytes) -> None:
    """A preset's file."""
    _read(lambda: presets.read_preset(File(data), "fuzzed"))


def cue(data: bytes) -> None:
    """A cue list's file."""
    _read(lambda: read_cue_list(File(data), "fuzzed"))


def desk_map(data: bytes) -> None:
    """A desk map's file."""
    _read(lambda: read_map(File(data), "fuzzed"))


def journal_text(data: bytes) -> None:
    """What a journal says, its checksum right."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(told, dict):
        journal.parse_session(told)


@functools.cache
def mailbox() -> Mailbox:
    return Mailbox(multiprocessing.get_context("spawn"), 64)


def slots(data: bytes) -> None:
    """The head of a mailbox as another process may have left it, or a frame written over it."""
    box = mailbox()
    box._memory.buf[: min(len(data), 64 + SLOTS * 48)] = data[: 64 + SLOTS * 48]  # type: ignore[index]
    frame = box.read()
    assert frame is None or (isinstance(frame, Frame) and min(frame.size) >= 1)


def _read(reader: Callable[[], object]) -> None:
    try:
        reader()
        READ[0] += 1
    except InvalidValue as error:
        if not str(error):
            raise AssertionError("a refusal without a word") from error


TARGETS: dict[str, Callable[[bytes], None]] = {
    "osc": osc, "tcp": tcp, "query": query, "wish": wish, "listen": listen, "preset": preset, "cue": cue, "map": desk_map,
    "journal": journal_text, "mailbox": slots,
}  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """What a target is begun with: the kept corpus, and what really comes."""
    kept = [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))] if (CORPUS / target).is_dir() else []
    root = Path(presets.__file__).parents[2] / "presets"
    folders = {"preset": "*.toml", "cue": "cues/*.toml", "map": "desks/*.toml"}
    if target in folders:
        return kept + [path.read_bytes() for path in sorted(root.glob(folders[target]))]
    packets = [
        encode_message(ROOT + name, parameter.default) for name, parameter in TABLE.items() if parameter.has_value
    ]
    packets += [bundled(*packets[:4]), bundled(bundled(*packets[:4])), bundled() + struct.pack(">i", -4)]
    made: dict[str, list[bytes]] = {
        "osc": packets,
        "tcp": [len(packet).to_bytes(4, "big") + packet for packet in packets[:20]]
        + [b"\xc0" + packet + b"\xc0" for packet in packets[:20]],
        "query": [(ROOT + name).encode() for name in TABLE] + [b"/"],
        "wish": [json.dumps({"set": name, "value": parameter.default}).encode() for name, parameter in TABLE.items()],
        "listen": [json.dumps({"COMMAND": "LISTEN", "DATA": ROOT + name}).encode() for name in list(TABLE)[:10]],
        "journal": [json.dumps({"version": 1, "values": {canonical("strength"): 0.5}, "cues": {"cue": "1"}}).encode()],
        "mailbox": [bytes(256)],
    }
    return kept + made[target]
