"""Registration of transports: one new file in the folder is opened by URL, and listed by sources and doctor."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bridge.textures
from bridge.commands import doctor, sources
from bridge.textures import TextureError, Transport, default_sinks, default_source, open_sink, open_source, transports
from engine.shared.frame import Frame

TAPE = """
from bridge.textures.base import Sink, Source, Transport
import numpy as np

class TapeSource(Source):
    def _read(self, timeout):
        return np.full((4, 4, 4), 7, np.uint8)

class TapeSink(Sink):
    def _write(self, frame):
        self.last = frame

TRANSPORT = Transport(scheme="tape", title="Tape", source=TapeSource, sink=TapeSink, names=lambda: ["A", "B"], rank=-1,
                      {extra})
"""


@pytest.fixture
def new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a transport module that the package finds as if it lay in its folder."""
    monkeypatch.setattr(bridge.textures, "__path__", [*bridge.textures.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bridge.textures.tape", raising=False)
    monkeypatch.delattr(bridge.textures, "tape", raising=False)
    return tmp_path / "tape.py"


def test_a_new_file_is_opened_by_url_and_listed(new_module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TextureError, match=r"is not a source; available here: .*pattern:"):
        open_source("tape:A")
    new_module.write_text(TAPE.format(extra='default_source="A", default_sink="out"'))
    with open_source("tape:A") as source:
        frame = source.read(0.1)
    assert source.name == "A"
    assert frame is not None
    assert frame.pixels[0, 0].tolist() == [7, 7, 7, 7]
    with open_sink("tape:out") as sink:
        sink.write(Frame(np.zeros((4, 4, 4), np.uint8)))
    assert sink.frames == 1
    assert default_source() == "tape:A"
    assert default_sinks() == ["tape:out"]
    with pytest.raises(TextureError, match=r"available here: .*tape:"):
        open_source("nothing:A")
    assert sources.main() == 0
    assert {"tape:A", "tape:B"} <= set(capsys.readouterr().out.splitlines())
    assert doctor.main() == 0
    assert re.search("^ok   tape: +usable$", capsys.readouterr().out, re.MULTILINE)


def test_a_missing_package_is_one_line_with_the_install_command(
    new_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_module.write_text(TAPE.format(extra='package="tape-reels", module="tape_reels", default_source="A"'))
    reason = "Tape needs the package tape-reels: pip install 'tape-reels'"
    for open_url in (open_source, open_sink):
        with pytest.raises(TextureError, match=f"^tape:A: {reason}$"):
            open_url("tape:A")
    assert default_source() != "tape:A"
    sources.main()
    assert "tape:" not in capsys.readouterr().out


def test_a_package_without_a_build_for_this_python_is_not_to_be_installed() -> None:
    newest = (sys.version_info[0], sys.version_info[1] - 1)
    tape = Transport(scheme="tape", title="Tape", package="tape_reels", newest_python=newest)
    name = ".".join(map(str, newest))
    assert tape.unavailable_reason() == f"Tape needs Python {name} or older: tape_reels has no build for this one"
    assert "pip install" in replace(tape, newest_python=sys.version_info[:2]).unavailable_reason()
    assert "spout" in [transport.scheme for transport in transports() if transport.newest_python == (3, 13)]


def test_a_transport_with_devices_needs_one_connected() -> None:
    connected: list[str] = []
    transport = Transport(scheme="tape", title="Tape deck", names=lambda: connected, devices=True)
    assert doctor._check_transport(transport) == (False, "no tape deck detected")
    connected.append("0")
    assert doctor._check_transport(transport) == (True, "usable: tape:0")


def test_every_transport_is_named_like_its_module_and_has_a_direction() -> None:
    folder = Path(bridge.textures.__path__[0])
    schemes = [transport.scheme for transport in transports()]
    assert schemes == sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "base"))
    assert all(transport.source or transport.sink for transport in transports())


@pytest.mark.parametrize("url", ["", "pattern:still"])
def test_a_transport_is_imported_when_it_is_opened(url: str) -> None:
    script = f"import sys, bridge.textures as t; {url!r} and t.open_source({url!r}); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(result.stdout.split())
    assert not {"av", "cyndilib", "SpoutGL", "syphon", "torch", "aiohttp"} & modules
    assert ("cv2" in modules) == bool(url)
    assert ("bridge.textures.pattern" in modules) == bool(url)
