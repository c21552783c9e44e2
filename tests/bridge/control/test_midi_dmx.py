"""MIDI and DMX input: mido's messages, Art-Net from its specification, sACN from the package's sender."""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import time

import mido
import pytest
import sacn

from bridge.commands.control_inputs import open_control_inputs
from bridge.control.dmx import ArtNet, Dmx, Sacn, parse_artdmx
from bridge.control.mapping import ControllerMap
from bridge.control.midi import Midi, MidiInput
from bridge.control.state import State
from bridge.errors import UserError
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.options import EngineOptions
from tests.bridge.performance.rig import Rig
from tests.waiting import until


class RecordingMap(ControllerMap):
    """Records every message instead of looking up its binding."""

    def __init__(self) -> None:
        super().__init__(State())
        self.messages: list[tuple[str, object]] = []

    def handle(self, address: str, arguments: object, origin: str) -> bool:
        assert isinstance(arguments, list)
        self.messages.append((address, arguments[0]))
        return True


def test_midi_messages_get_addresses() -> None:
    controllers = RecordingMap()
    midi = Midi(controllers, Rig().tempo)
    for message in (
        mido.Message("control_change", channel=0, control=20, value=64),
        mido.Message("note_on", channel=1, note=36, velocity=100),
        mido.Message("note_off", channel=1, note=36, velocity=60),
        mido.Message("program_change", channel=15, program=6),
        mido.Message("pitchwheel", channel=0, pitch=-8192),
        mido.Message("active_sensing"),
        mido.Message("sysex", data=(1, 2)),
    ):
        midi.handle(message)
    assert controllers.messages == [
        ("/midi/cc/1/20", 64),
        ("/midi/note/2/36", 100),
        ("/midi/note/2/36", 0),
        ("/midi/program/16", 7),
        ("/midi/bend/1", 0),
    ]
    assert midi.messages == 7


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ((3, 12, 9), "pip install 'phosphene[desks]'"),
        ((3, 13, 0), "use Python 3.11 or 3.12, or, with a C++ compiler, pip install python-rtmidi"),
    ],
)
def test_without_a_midi_package_the_line_suits_this_python(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], hint: str
) -> None:
    monkeypatch.setitem(sys.modules, "mido", None)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(OSError, match="MIDI is not available") as caught:
        MidiInput(Midi(RecordingMap(), Rig().tempo))
    assert str(caught.value).endswith(f"; {hint}")


def test_midi_clock_sets_the_tempo_and_the_beat() -> None:
    desk = Rig(tempo=90.0)
    midi = Midi(RecordingMap(), desk.tempo)
    midi.handle(mido.Message("start"))
    for _ in range(24 * 6):
        midi.handle(mido.Message("clock"))
        desk.clock.now += 60 / 128 / 24
    assert desk["/tempo"] == pytest.approx(128.0, abs=0.1)
    assert desk.tempo.beats() == pytest.approx(round(desk.tempo.beats()), abs=0.02), "every 24th MIDI clock is a beat"
    desk.clock.now += 3.0
    midi.handle(mido.Message("clock"))
    assert desk["/tempo"] == pytest.approx(128.0, abs=0.1), "a pause does not set the tempo"


def packet(universe: int, values: bytes, opcode: int = 0x5000) -> bytes:
    """Return an ArtDmx packet, laid out as in Art-Net 4."""
    return (
        b"Art-Net\0"
        + struct.pack("<H", opcode)
        + bytes([0, 14, 1, 0])
        + struct.pack("<H", universe)
        + struct.pack(">H", len(values))
        + values
    )


def test_artnet_passes_on_changed_channels_and_ignores_malformed_packets() -> None:
    controllers = RecordingMap()
    dmx = Dmx(controllers)
    server = ArtNet(dmx, "127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
        for data in (
            packet(3, bytes(512)),
            b"",
            b"Art-Net\0",
            packet(3, bytes(4))[:-1],
            packet(3, bytes(20), 0x2000),
            b"x" * 600,
        ):
            desk.sendto(data, ("127.0.0.1", server.port))
        desk.sendto(packet(3, bytes([0, 200, 0, 7]) + bytes(508)), ("127.0.0.1", server.port))
        desk.sendto(packet(3, bytes([0, 201, 0, 7]) + bytes(508)), ("127.0.0.1", server.port))
        until(lambda: len(controllers.messages) == 3)
    server.close()
    assert controllers.messages == [("/dmx/3/2", 200), ("/dmx/3/4", 7), ("/dmx/3/2", 201)]
    assert dmx.packets == 3
    assert parse_artdmx(packet(0x7FFF, bytes(2))) == (0x7FFF, bytes(2))


def test_sacn_passes_on_changed_channels() -> None:
    controllers = RecordingMap()
    dmx = Dmx(controllers)
    receiver = Sacn(dmx, [1], "127.0.0.1")
    sender = sacn.sACNsender(bind_address="127.0.0.1", bind_port=0)
    sender.start()
    try:
        sender.activate_output(1)
        sender[1].destination = "127.0.0.1"
        sender[1].dmx_data = (0, 0, 0)
        until(lambda: dmx.packets > 0, 10)
        sender[1].dmx_data = (0, 128, 0)
        until(lambda: ("/dmx/1/2", 128) in controllers.messages, 10)
    finally:
        sender.stop()
        receiver.close()


def test_malformed_sacn_packets_end_nothing() -> None:
    controllers = RecordingMap()
    dmx = Dmx(controllers)
    receiver = Sacn(dmx, [1], "127.0.0.1")
    good = bytes(sacn.messages.data_packet.DataPacket((1,) * 16, "desk", 1, (0, 7, 0)).getBytes())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
            for place, value in ((108, 255), (44, 255), (113, 255), (114, 0), (117, 9), (125, 1)):
                bad = bytearray(good)
                bad[place] = value
                desk.sendto(bad, ("127.0.0.1", 5568))
            desk.sendto(b"", ("127.0.0.1", 5568))
            desk.sendto(good, ("127.0.0.1", 5568))
            until(lambda: dmx.packets > 0, 10)
    finally:
        receiver.close()


def test_artnet_listens_on_ipv6_hosts_too() -> None:
    controllers = RecordingMap()
    try:
        server = ArtNet(Dmx(controllers), "::", 0)
    except OSError:
        pytest.xfail("this machine has no IPv6")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
        for value in (0, 9):
            desk.sendto(packet(3, bytes([value, 0])), ("127.0.0.1", server.port))
        until(lambda: controllers.messages == [("/dmx/3/1", 9)])
    server.close()


class BrokenMap(RecordingMap):
    """Raises at the first message, as if there were no memory left for it."""

    def handle(self, address: str, arguments: object, origin: str) -> bool:
        if not self.messages:
            super().handle(address, arguments, origin)
            raise OSError("out of memory")
        return super().handle(address, arguments, origin)


def test_an_input_survives_an_exception() -> None:
    controllers = BrokenMap()
    midi = Midi(controllers, Rig().tempo)
    for value in (1, 2):
        midi.handle(mido.Message("control_change", channel=0, control=20, value=value))
    assert controllers.messages == [("/midi/cc/1/20", 1), ("/midi/cc/1/20", 2)]

    controllers = BrokenMap()
    server = ArtNet(Dmx(controllers), "127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
        for value in (0, 5, 6):
            desk.sendto(packet(3, bytes([value, 0])), ("127.0.0.1", server.port))
        until(lambda: len(controllers.messages) == 2)
    server.close()
    assert controllers.messages == [("/dmx/3/1", 5), ("/dmx/3/1", 6)]


def test_a_missing_input_is_one_clear_line() -> None:
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    no_inputs: dict[str, object] = {
        "midi": None,
        "artnet": False,
        "sacn": None,
        "link": False,
        "audio": None,
        "host": "127.0.0.1",
    }
    for option, message in (("midi", "MIDI"), ("audio", "no audio input")):
        with pytest.raises(UserError, match=message):
            open_control_inputs(show, argparse.Namespace(**no_inputs | {option: "no such device"}))
    options = argparse.Namespace(**no_inputs | {"artnet": True})
    inputs = open_control_inputs(show, options)
    with pytest.raises(UserError):
        open_control_inputs(show, options)
    inputs.close()
    time.sleep(0.05)
    show.close()
