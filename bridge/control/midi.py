"""MIDI controllers and MIDI clock, through mido: each message becomes one that a desk map knows.

``/midi/cc/CHANNEL/NUMBER`` (0–127), ``/midi/note/CHANNEL/NOTE`` (velocity, 0 when let go), ``/midi/program/CHANNEL`` (from 1) and
``/midi/bend/CHANNEL`` (0–16383), channels from 1.
"""

from __future__ import annotations

import logging
from typing import Any

from bridge.control.mapping import ControllerMap
from bridge.control.tempo import Tempo

log = logging.getLogger(__name__)
ALL = "all"


class Midi:
    """Takes mido's messages to the desk maps and the beat clock."""

    def __init__(self, desks: ControllerMap, tempo: Tempo) -> None:
        self._desks, self._tempo = desks, tempo
        self.messages = 0

    def take(self, message: Any) -> None:
        """One message of mido's."""
        self.messages += 1
        kind, origin = message.type, "MIDI"
        if kind == "clock":
            self._tempo.clock()
        elif kind in ("start", "continue"):
            self._tempo.start()
        elif kind == "control_change":
            self._desks.handle(f"/midi/cc/{message.channel + 1}/{message.control}", [message.value], origin)
        elif kind in ("note_on", "note_off"):
            velocity = message.velocity if kind == "note_on" else 0
            self._desks.handle(f"/midi/note/{message.channel + 1}/{message.note}", [velocity], origin)
        elif kind == "program_change":
            self._desks.handle(f"/midi/program/{message.channel + 1}", [message.program + 1], origin)
        elif kind == "pitchwheel":
            self._desks.handle(f"/midi/bend/{message.channel + 1}", [message.pitch + 8192], origin)


class MidiInput:
    """The input ports whose name holds ``name``, or all. Raises OSError where there is none, or no MIDI here."""

    def __init__(self, midi: Midi, name: str = ALL) -> None:
        self._ports: list[Any] = []
        try:
            import mido

            found = [port for port in mido.get_input_names() if name == ALL or name.lower() in port.lower()]
        except Exception as error:  # rtmidi has errors of its own
            reason = str(error).splitlines() or [type(error).__name__]
            raise OSError(f"MIDI cannot be used here ({reason[0]}); pip install 'phosphene[desks]'") from None
        if not found:
            raise OSError("no MIDI input is there" if name == ALL else f"no MIDI input is called {name!r}")
        for port in found:
            self._ports.append(mido.open_input(port, callback=midi.take))
            log.info("MIDI from %s", port)

    def close(self) -> None:
        """Closes the ports."""
        for port in self._ports:
            port.close()
