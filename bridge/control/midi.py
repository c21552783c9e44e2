"""MIDI controllers and MIDI clock, through mido: each message gets an address that a controller map can bind.

``/midi/cc/CHANNEL/NUMBER`` (0–127), ``/midi/note/CHANNEL/NOTE`` (velocity, 0 on release), ``/midi/program/CHANNEL``
(from 1) and ``/midi/bend/CHANNEL`` (0–16383). Channels count from 1.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from bridge.control.mapping import ControllerMap
from bridge.control.tempo import Tempo
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line

log = logging.getLogger(__name__)
ALL_PORTS = "all"


class Midi:
    """Passes mido's messages to the controller map and the beat clock."""

    def __init__(self, controllers: ControllerMap, tempo: Tempo) -> None:
        self._controllers, self._tempo = controllers, tempo
        self._limit = RateLimit()
        self.messages = 0

    def handle(self, message: Any) -> None:
        """Handle one mido message, on the library's thread, which must not see an exception."""
        try:
            self._handle(message)
        except Exception:
            if self._limit.passes()[0]:
                log.exception("a MIDI message could not be handled")

    def _handle(self, message: Any) -> None:
        self.messages += 1
        kind = message.type
        if kind == "clock":
            self._tempo.count_midi_clock()
        elif kind in ("start", "continue"):
            self._tempo.start_midi_clock()
        elif kind == "control_change":
            self._dispatch("cc", message.channel, message.value, message.control)
        elif kind in ("note_on", "note_off"):
            self._dispatch("note", message.channel, message.velocity if kind == "note_on" else 0, message.note)
        elif kind == "program_change":
            self._dispatch("program", message.channel, message.program + 1)
        elif kind == "pitchwheel":
            self._dispatch("bend", message.channel, message.pitch + 8192)

    def _dispatch(self, kind: str, channel: int, value: int, number: int | None = None) -> None:
        """Pass a value on; mido counts channels from 0."""
        suffix = "" if number is None else f"/{number}"
        self._controllers.handle(f"/midi/{kind}/{channel + 1}{suffix}", [value], "MIDI")


def _install_hint() -> str:
    """Return how to get MIDI: python-rtmidi 1.5 has no wheel for Python 3.13 and newer."""
    if sys.version_info < (3, 13):
        return "pip install 'phosphene[desks]'"
    return "use Python 3.11 or 3.12, or, with a C++ compiler, pip install python-rtmidi"


class MidiInput:
    """The input ports whose name contains ``name``, or all. Raises OSError if there is none, or no MIDI support."""

    def __init__(self, midi: Midi, name: str = ALL_PORTS) -> None:
        self._ports: list[Any] = []
        try:
            import mido

            ports = [port for port in mido.get_input_names() if name == ALL_PORTS or name.lower() in port.lower()]
        except Exception as error:  # rtmidi raises errors of its own types
            raise OSError(f"MIDI is not available ({first_line(error)}); {_install_hint()}") from None
        if not ports:
            raise OSError("no MIDI input" if name == ALL_PORTS else f"no MIDI input matches {name!r}")
        for port in ports:
            self._ports.append(mido.open_input(port, callback=midi.handle))
            log.info("MIDI from %s", port)

    def close(self) -> None:
        """Close the ports."""
        for port in self._ports:
            port.close()
