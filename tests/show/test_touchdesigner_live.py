"""The TouchDesigner component starts the real command, controls it and ends it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import psutil

from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import Wire, built, par

__all__ = ["built"]  # a fixture
#: The checkout, which the program adds to its path: the component removes PYTHONPATH from the environment.
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that is free for both TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def write_program(folder: Path) -> str:
    """Write a program that runs the checkout's command and return its path, which holds a blank."""
    program = folder / "my shows" / "phosphene"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\n\nsys.path.insert(0, {str(ROOT)!r})\nfrom bridge.cli import main\n\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return str(program)


def test_a_port_that_another_show_has_is_named(built: tuple[TouchDesigner, Operator], tmp_path: Path) -> None:
    touch, component = built
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        wire = Wire(touch, component, port)
        component.par.Program = write_program(tmp_path)
        component.par.Arguments = "--source pattern:plasma --sink null: --session none --log none"
        component.par.Transport = "ndi"
        extension = component.ext.PhospheneExt
        extension.logPath = str(tmp_path / "log")
        try:
            par(component, "Start").pulse()
            wire.advance(until=lambda: f"port {port} cannot be used" in par(component, "Error").val, timeout=30)
        finally:
            extension.Stop()
            wire.close()


def test_start_play_and_stop(built: tuple[TouchDesigner, Operator], tmp_path: Path) -> None:
    touch, component = built
    wire = Wire(touch, component, free_port())
    component.par.Program = write_program(tmp_path)
    component.par.Httpport = free_port()
    component.par.Transport = "ndi"
    user_folder = tmp_path / "my shows" / "presets"
    user_folder.mkdir()
    (user_folder / "mine.toml").write_text('prompt = "blue rain"\n', encoding="utf-8")
    component.par.Arguments = (
        "--source pattern:plasma --sink null: --accelerate eager --size 128x128 --set cue/list=demo"
        f' --presets "{user_folder}"'
    )
    extension = component.ext.PhospheneExt
    extension.logPath = str(tmp_path / "log")
    try:
        par(component, "Start").pulse()
        wire.advance(until=lambda: par(component, "Status").val == "live", timeout=60)
        wire.advance(until=lambda: par(component, "Fps").val > 1)
        assert par(component, "Error").val == ""
        assert par(component, "Cuelist").val == "demo"
        component.par.Strength = 0.3
        par(component, "Recallbonfire").pulse()
        wire.advance(until=lambda: par(component, "Prompt").val == "orange fire")
        component.par.Preset = "mine"
        wire.advance(until=lambda: par(component, "Prompt").val == "blue rain")
        par(component, "Cuego").pulse()
        wire.advance(until=lambda: par(component, "Cue").val == "1")
        assert "2" in par(component, "Cuegoto").menuNames
        process = psutil.Process(extension.process.pid)
        processes = [process, *process.children(recursive=True)]
        par(component, "Stop").pulse()
        wire.advance(
            until=lambda: all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in processes),
            timeout=15,
        )
        wire.advance(until=lambda: not par(component, "Connected").val)
        assert par(component, "Error").val == ""
    except AssertionError:
        print(
            (tmp_path / "log").read_text(),
            {name: par(component, name).val for name in ("Status", "Error", "Connected")},
        )
        raise
    finally:
        extension.Stop()
        wire.close()
