"""MIDI and DMX as desk maps and the beat clock get them: mido's messages, Art-Net by its specification, sACN from its own sender."""

from __future__ import annotations

import argparse
import socket
import struct
import time

import mido
import pytest
import sacn

from bridge.commands.run import outside
from bridge.control.dmx import ArtNet, Dmx, Sacn, artdmx
from bridge.control.mapping import ControllerMap
from bridge.control.midi import Midi
from bridge.control.state import State
from bridge.errors import UserError
from bridge.show.show import Show
from bridge.textures import open_source
from engine.shared.options import EngineOptions
from tests.bridge.performance.rig import Rig
from tests.waiting import until


class Heard(ControllerMap):
    """Desk maps that write down what comes in."""

    def __init__(self) -> None:
        super().__init__(State())
        self.messages: list[tuple[str, object]] = []

    def handle(self, address: str, arguments: object, origin: str) -> bool:
        assert isinstance(arguments, list)
        self.messages.append((address, arguments[0]))
        return True


def test_midi_messages_have_addresses() -> None:
    heard = Heard()
    midi = Midi(heard, Rig().tempo)
    for message in (
        mido.Message("control_change", channel=0, control=20, value=64), mido.Message("note_on", channel=1, note=36, velocity=100),
        mido.Message("note_off", channel=1, note=36, velocity=60), mido.Message("program_change", channel=15, program=6),
        mido.Message("pitchwheel", channel=0, pitch=-8192), mido.Message("active_sensing"), mido.Message("sysex", data=(1, 2)),
    ):  # fmt: skip
        midi.take(message)
    assert heard.messages == [
        ("/midi/cc/1/20", 64), ("/midi/note/2/36", 100), ("/midi/note/2/36", 0), ("/midi/program/16", 7), ("/midi/bend/1", 0),
    ]  # fmt: skip
    assert midi.messages == 7


def test_midi_clock_sets_the_tempo_and_the_beat() -> None:
    desk = Rig(tempo=90.0)
    midi = Midi(Heard(), desk.tempo)
    midi.take(mido.Message("start"))
    for _ in range(24 * 6):
        midi.take(mido.Message("clock"))
        desk.clock.now += 60 / 128 / 24
    assert desk["/tempo"] == pytest.approx(128.0, abs=0.1)
    assert desk.tempo.beats() == pytest.approx(round(desk.tempo.beats()), abs=0.02), "beats lie on its 24th clocks"
    desk.clock.now += 3.0
    midi.take(mido.Message("clock"))
    assert desk["/tempo"] == pytest.approx(128.0, abs=0.1), "a pause is no tempo"


def packet(universe: int, values: bytes, opcode: int = 0x5000) -> bytes:
    """ArtDmx as Art-Net 4 lays it out."""
    return (
        b"Art-Net\0"
        + struct.pack("<H", opcode)
        + bytes([0, 14, 1, 0])
        + struct.pack("<H", universe)
        + struct.pack(">H", len(values))
        + values
    )


def test_art_net_tells_the_channels_that_change_and_shrugs_at_rubbish() -> None:
    heard = Heard()
    dmx = Dmx(heard)
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
        until(lambda: len(heard.messages) == 3)
    server.close()
    assert heard.messages == [("/dmx/3/2", 200), ("/dmx/3/4", 7), ("/dmx/3/2", 201)]
    assert dmx.packets == 3
    assert artdmx(packet(0x7FFF, bytes(2))) == (0x7FFF, bytes(2))


def test_sacn_comes_through() -> None:
    heard = Heard()
    dmx = Dmx(heard)
    receiver = Sacn(dmx, [1], "127.0.0.1")
    sender = sacn.sACNsender(bind_address="127.0.0.1", bind_port=0)
    sender.start()
    try:
        sender.activate_output(1)
        sender[1].destination = "127.0.0.1"
        sender[1].dmx_data = (0, 0, 0)
        until(lambda: dmx.packets > 0, 10)
        sender[1].dmx_data = (0, 128, 0)
        until(lambda: ("/dmx/1/2", 128) in heard.messages, 10)
    finally:
        sender.stop()
        receiver.close()


def test_what_is_not_there_is_told_in_one_line() -> None:
    show = Show(State(), open_source("pattern:ball"), [], EngineOptions("cpu"), presets=[])
    nothing: dict[str, object] = {
        "midi": None,
        "artnet": False,
        "sacn": None,
        "link": False,
        "audio": None,
        "host": "127.0.0.1",
    }
    for asked, told in (("midi", "MIDI"), ("audio", "no sound")):
        with pytest.raises(UserError, match=told):
            outside(show, argparse.Namespace(**nothing | {asked: "no such device"}))
    options = argparse.Namespace(**nothing | {"artnet": True})
    first = outside(show, options)
    with pytest.raises(UserError):
        outside(show, options)
    for each in first:
        each.close()
    time.sleep(0.05)
    show.close()
