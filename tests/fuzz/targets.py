"""Fuzz targets: each parser of external data as a function of bytes.

A parser of files may raise InvalidValue and nothing else. A parser of network data raises nothing.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bridge.control.map_file import read_map
from bridge.control.state import State
from bridge.osc import oscquery
from bridge.osc.coalesce import coalesce
from bridge.osc.dispatch import OscControl, Peer
from bridge.osc.framing import detect_framing
from bridge.osc.subscriptions import encode_message
from bridge.panel.outbox import Outbox
from bridge.panel.region_watchers import RegionWatchers
from bridge.panel.sockets import Sockets
from bridge.performance.cue_list import read_cue_list
from bridge.performance.preset_file import read_preset
from bridge.performance.session import parse_session
from engine.shared.frame import Frame
from engine.shared.mailbox import SLOTS, Mailbox
from engine.shared.parameter import InvalidValue
from engine.shared.table import ROOT, TABLE, canonical

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
PRESETS = FOLDER.parents[1] / "presets"
#: Number of documents that were accepted, in a list so that the targets can count.
ACCEPTED = [0]


class File:
    """Bytes in place of a file."""

    name, stem = "fuzzed.toml", "fuzzed"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data


@functools.cache
def osc_control() -> tuple[State, OscControl]:
    """Return a state and its OSC control, the same at every call."""
    state = State()
    return state, OscControl(state)


@functools.cache
def oscquery_tree() -> Any:
    return oscquery.build_tree(State().snapshot(), {})


class NullOutbox:
    """An outbox without a panel."""

    def put(self, update: dict[str, Any]) -> None:
        """Drop the update."""


@functools.cache
def sockets() -> Any:
    """Return what the handlers of WebSocket messages need of their object."""
    state, control = osc_control()
    supervisor: Any = SimpleNamespace(region_map=None, watch_regions=lambda _is_on: None)
    return SimpleNamespace(_show=SimpleNamespace(state=state, osc=control), _region_watchers=RegionWatchers(supervisor))


@functools.cache
def mailbox() -> Mailbox:
    return Mailbox(multiprocessing.get_context("spawn"), 64)


def build_bundle(*elements: bytes) -> bytes:
    """Return an OSC bundle that is due at once."""
    sized = [struct.pack(">i", len(element)) + element for element in elements]
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(sized)


def handle_osc_packet(data: bytes) -> None:
    """Handle a UDP packet."""
    coalesce([(data, 1), (data, 1)])
    osc_control()[1].handle_packet(data, Peer("fuzz", "fuzz", lambda _packet: None))


def handle_osc_stream(data: bytes) -> None:
    """Handle a TCP stream in either framing, in two parts."""
    if data:
        framing = detect_framing(data[0])
        try:
            packets = framing.feed(data[: len(data) // 2]) + framing.feed(data[len(data) // 2 :])
        except ValueError:
            return  # the server disconnects the client
        for packet in packets:
            handle_osc_packet(packet)


def find_oscquery_node(data: bytes) -> None:
    """Find the OSCQuery node at a path."""
    node = oscquery.find_node(oscquery_tree(), data.decode("utf-8", "replace"))
    assert node is None or "FULL_PATH" in node


def handle_oscquery_message(data: bytes) -> None:
    """Handle a message of an OSCQuery client's WebSocket."""
    Sockets._handle_command(sockets(), data.decode("utf-8", "replace"), set(), "fuzz")


def handle_panel_message(data: bytes) -> None:
    """Handle a message of the panel's WebSocket."""
    Sockets._handle_request(sockets(), data.decode("utf-8", "replace"), cast(Outbox, NullOutbox()), "fuzz")


def parse_preset(data: bytes) -> None:
    """Parse a preset file."""
    _parse(lambda: read_preset(File(data), "fuzzed"))


def parse_cue_list(data: bytes) -> None:
    """Parse a cue list file."""
    _parse(lambda: read_cue_list(File(data), "fuzzed"))


def parse_mapping(data: bytes) -> None:
    """Parse a controller map file."""
    _parse(lambda: read_map(File(data), "fuzzed"))


def parse_session_content(data: bytes) -> None:
    """Parse the content of a session file whose checksum is right."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict):
        parse_session(content)


def read_mailbox(data: bytes) -> None:
    """Read a mailbox whose header another process, or a frame, has overwritten."""
    box = mailbox()
    box._memory.buf[: min(len(data), 64 + SLOTS * 48)] = data[: 64 + SLOTS * 48]  # type: ignore[index]
    frame = box.read()
    assert frame is None or (isinstance(frame, Frame) and min(frame.size) >= 1)


def _parse(parser: Callable[[], object]) -> None:
    try:
        parser()
        ACCEPTED[0] += 1
    except InvalidValue as error:
        if not str(error):
            raise AssertionError("rejected without a message") from error


#: Name of each target, which is its folder in the corpus, → the target.
TARGETS: dict[str, Callable[[bytes], None]] = {
    "osc_packet": handle_osc_packet,
    "osc_stream": handle_osc_stream,
    "oscquery_path": find_oscquery_node,
    "oscquery_message": handle_oscquery_message,
    "panel_message": handle_panel_message,
    "preset": parse_preset,
    "cue_list": parse_cue_list,
    "mapping": parse_mapping,
    "session": parse_session_content,
    "mailbox": read_mailbox,
}
#: Targets that parse files → pattern of the shipped files below ``presets``.
DOCUMENTS = {"preset": "*.toml", "cue_list": "cues/*.toml", "mapping": "desks/*.toml"}


def load_seeds(target: str) -> list[bytes]:
    """Return the inputs that a search starts from: the corpus, and valid data."""
    corpus = [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]
    return corpus + _valid_inputs(target)


def _valid_inputs(target: str) -> list[bytes]:
    if target in DOCUMENTS:
        return [path.read_bytes() for path in sorted(PRESETS.glob(DOCUMENTS[target]))]
    packets = [
        encode_message(ROOT + name, parameter.default) for name, parameter in TABLE.items() if parameter.has_value
    ]
    packets += [build_bundle(*packets[:4]), build_bundle(build_bundle(*packets[:4]))]
    packets += [build_bundle() + struct.pack(">i", -4)]
    documents: dict[str, list[Any]] = {
        "oscquery_message": [{"COMMAND": "LISTEN", "DATA": ROOT + name} for name in list(TABLE)[:10]],
        "panel_message": [{"set": name, "value": parameter.default} for name, parameter in TABLE.items()],
        "session": [{"version": 1, "values": {canonical("strength"): 0.5}, "cues": {"cue": "1"}}],
    }
    if target in documents:
        return [json.dumps(document).encode() for document in documents[target]]
    length_prefixed = [len(packet).to_bytes(4, "big") + packet for packet in packets[:20]]
    slip = [b"\xc0" + packet + b"\xc0" for packet in packets[:20]]
    return {
        "osc_packet": packets,
        "osc_stream": length_prefixed + slip,
        "oscquery_path": [(ROOT + name).encode() for name in TABLE] + [b"/"],
        "mailbox": [bytes(256)],
    }[target]
