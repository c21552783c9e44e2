"""The source of ``run`` without ``--source``: a pattern at once, which a sender named phosphene-in replaces."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from bridge.commands import doctor
from bridge.textures import base, default_sender, default_sinks, default_source, open_default_source, spout
from bridge.textures.base import Source, TextureError
from engine.shared.frame import Frame, Pixels
from tests.bridge.textures.fake_spout import FakeSpout
from tests.bridge.textures.fake_syphon import FakeSyphon
from tests.bridge.textures.pictures import read_frame, upright
from tests.waiting import until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a missing sender soon, and keep doctor's slow checks out."""
    monkeypatch.setattr(base, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(spout, "SENDER_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "transports", list)
    monkeypatch.setattr(doctor, "_check_engine", lambda check: None)


def read_until(source: Source, condition: Callable[[Frame], bool]) -> Frame:
    frames: list[Frame] = []

    def matches() -> bool:
        frame = source.read(0.05)
        frames.extend([frame] if frame is not None else [])
        return frame is not None and condition(frame)

    until(matches, 5)
    assert [frame.sequence for frame in frames] == list(range(frames[0].sequence, frames[-1].sequence + 1))
    return frames[-1]


def is_upright(frame: Frame) -> bool:
    return np.array_equal(frame.pixels, upright())


def test_on_linux_the_default_is_the_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform in ("win32", "darwin"):
        pytest.skip("this platform has texture sharing")
    assert default_source() == "pattern:plasma"
    assert default_sender() is None
    with open_default_source() as source:
        assert source.describe() == "pattern:plasma"
        assert read_frame(source).pixels.std() > 20
    doctor.main()
    assert f"would read pattern:plasma and send to {default_sinks()[0]}" in capsys.readouterr().out


def test_on_windows_the_pattern_is_there_at_once_and_a_spout_sender_replaces_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    senders = FakeSpout()
    senders.install(monkeypatch)
    assert default_source() == "pattern:plasma"
    assert default_sender() == "spout:phosphene-in"
    assert default_sinks() == ["spout:phosphene-out"]
    doctor.main()
    assert "would read pattern:plasma, from when it is there spout:phosphene-in, and" in capsys.readouterr().out
    with caplog.at_level(logging.INFO), open_default_source() as source:
        assert source.describe() == "pattern:plasma until spout:phosphene-in appears"
        senders.send("Arena - Composition", upright())
        start = time.perf_counter()
        for _ in range(12):
            assert read_frame(source, 1.0).size == (256, 256)
        assert 0.2 < time.perf_counter() - start < 2.0, "thirty frames a second"
        assert senders.contexts_created == 0
        assert caplog.messages == []

        senders.empty_reads = 0
        senders.send("phosphene-in", upright())
        read_until(source, is_upright)
        assert source.url == source.describe() == "spout:phosphene-in"
        assert caplog.messages == ["spout:phosphene-in is there and replaces pattern:plasma"]

        del senders.pictures["phosphene-in"]
        end = time.perf_counter() + 0.4
        while time.perf_counter() < end:
            assert source.read(0.01) is None, "the show holds its last picture, the pattern does not come back"
        assert caplog.messages[1:] == ["spout:phosphene-in: the sender is gone; waiting for it to come back"]
        senders.send("phosphene-in", upright())
        read_until(source, is_upright)
        assert senders.contexts_created == 1
    assert senders.contexts_open == 0


def test_on_macos_the_pattern_is_there_at_once_and_a_syphon_server_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeSyphon()
    mac.install(monkeypatch)
    assert default_source() == "pattern:plasma"
    assert default_sender() == "syphon:phosphene-in"
    with open_default_source() as source:
        assert read_frame(source).size == (256, 256)
        mac.start_server("TouchDesigner", "phosphene-in").picture = upright()
        read_until(source, is_upright)
        assert source.url == "syphon:phosphene-in"


def test_without_opengl_the_pattern_stays_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    senders = FakeSpout()
    senders.install(monkeypatch)
    senders.has_opengl = False
    senders.send("phosphene-in", upright())
    with open_default_source() as source:
        for _ in range(12):
            assert read_frame(source, 1.0).size == (256, 256)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("spout:phosphene-in: no OpenGL context can be made here")


class Refused(Source):
    """A source that cannot be opened, for ``reason``, after it was open once."""

    def __init__(self) -> None:
        super().__init__("refused:")
        self.reason = ""

    def _open(self) -> None:
        if self.reason:
            raise TextureError(self.reason)

    def _read(self, timeout: float) -> Pixels | None:
        if self.reason:
            raise base.SourceLost("unplugged")
        return upright()


def test_a_source_that_cannot_be_opened_again_says_each_reason_once() -> None:
    with Refused() as source:
        read_frame(source)
        for reason in ("the disk is gone", "the folder is gone"):
            source.reason = reason
            with pytest.raises(TextureError, match=reason):
                read_frame(source)
            end = time.perf_counter() + 0.1
            while time.perf_counter() < end:
                assert source.read(0.01) is None
        source.reason = ""
        read_frame(source)
