"""Opens the optional control inputs of ``phosphene run``: MIDI, Ableton Link, audio, Art-Net and sACN."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from bridge.errors import UserError
from bridge.show.show import Show


def open_control_inputs(show: Show, options: argparse.Namespace) -> ExitStack:
    """Open the inputs that the options ask for; closing the returned stack closes them. Raises UserError."""
    with ExitStack() as opened:
        try:
            for control_input in _open_each(show, options):
                opened.enter_context(closing(control_input))
        except OSError as error:
            raise UserError(str(error)) from None
        return opened.pop_all()


def _open_each(show: Show, options: argparse.Namespace) -> Iterator[Any]:
    """Yield each input once it is open. Imports the input's library, which is optional. Raises OSError."""
    if options.midi:
        from bridge.control.midi import Midi, MidiInput

        yield MidiInput(Midi(show.desks, show.automation.tempo), options.midi)
    if options.link:
        from bridge.control.ableton_link import LinkClock

        yield LinkClock(show.state, show.automation.tempo)
    if options.audio:
        from bridge.control.audio import AudioInput

        yield AudioInput(show.state, options.audio)
    if options.artnet or options.sacn:
        from bridge.control.dmx import ArtNet, Dmx, Sacn

        dmx = Dmx(show.desks)
        if options.artnet:
            yield ArtNet(dmx, options.host)
        if options.sacn:
            yield Sacn(dmx, options.sacn, options.host)
