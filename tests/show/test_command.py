"""The command as a user meets it: a process of its own, real ports, NDI on loopback, OSC over UDP."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
from pythonosc.udp_client import SimpleUDPClient

from bridge.cli import main
from tests.show.stage import RUN, Command
from tests.waiting import MINUTE, until

PEER = Path(__file__).with_name("ndi_peer.py")


def test_the_first_command_shows_processed_frames_within_10_seconds() -> None:
    with Command("--seconds", "12") as command:
        seconds = float(command.wait_for(r"first transformed frame ([\d.]+) s", 30)[1])
        print(f"first transformed frame after {seconds} s")
        assert time.perf_counter() - command.started < 10
        assert seconds < 10
        for path, kind in (("", b"<!doctype html>"), ("input.jpg", b"\xff\xd8"), ("output.jpg", b"\xff\xd8")):
            asked = urllib.request.Request(command.page() + path, headers={"Accept": "text/html,image/*"})
            with urllib.request.urlopen(asked, timeout=5) as answer:
                assert answer.read().startswith(kind)
        until(lambda: _difference(command.page()) > 5, 6, "an output that is not the input")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(command.page() + "nothing", timeout=5)
        with urllib.request.urlopen(command.page() + "output.mjpg", timeout=5) as stream:
            assert b"image/jpeg" in stream.read(200)
        until(lambda: command.process.poll() is not None, 20, "the end after --seconds")
        assert command.process.returncode == 0
        assert "fps" in command.lines[-1]


def _difference(page: str) -> float:
    """Between what goes in and what comes out now, in levels."""
    shown = [urllib.request.urlopen(page + name, timeout=5).read() for name in ("input.jpg", "output.jpg")]
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), 1).astype(int) for data in shown]
    return float(np.abs(pictures[0] - pictures[1]).mean())


def test_ctrl_c_ends_the_engine_and_a_recording_plays(tmp_path: Path) -> None:
    take = tmp_path / "take.mp4"
    with Command(
        "--sink", f"file:{take}", "--sink", "null:", "--source", "pattern:ball", "--size", "128x128"
    ) as command:
        command.wait_for("first transformed frame", 30)
        engine = psutil.Process(command.status()["engine_pid"])
        time.sleep(1.5)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(15) == 0
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 5, "the engine's end")
    with av.open(str(take)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_a_show_keeps_running_when_its_output_is_closed(tmp_path: Path) -> None:
    arguments = shlex.split("--seconds 8 --size 64x64 --steps 1 --source pattern:ball --session none --log none --sink")
    command = [*RUN, *arguments, f"file:{tmp_path / 'take.mp4'}"]
    with (tmp_path / "errors").open("wb") as errors:
        show = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert show.stdout is not None
        assert show.stdout.readline().startswith(b"source")
        show.stdout.close()
        assert show.wait(30) == 0
    assert "Traceback" not in (output := (tmp_path / "errors").read_text()), output
    assert "Broken pipe" not in output
    with av.open(str(tmp_path / "take.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 30, "it kept running after its output was closed"


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_a_listing_ends_quietly_when_its_output_is_closed() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "bridge", "sources"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.wait(30) == 1
    assert listing.stderr is not None
    assert listing.stderr.read() == b""


def shared_memory() -> set[Path]:
    """Return the blocks of shared memory; none where the system does not list them."""
    return set(Path("/dev/shm").glob("psm_*"))


def engines(bridge: psutil.Process) -> list[psutil.Process]:
    """Return the running engine and the standby."""
    return [child for child in bridge.children() if "spawn_main" in " ".join(child.cmdline())]


def test_everything_ends_when_the_bridge_is_killed() -> None:
    before = shared_memory()
    with Command("--size", "64x64") as command:
        command.wait_for("first transformed frame", 30)
        bridge, engine = psutil.Process(command.process.pid), command.status()["engine_pid"]
        until(lambda: len(engines(bridge)) > 1, 20, "a standby engine")
        children = engines(bridge)
        assert engine in {child.pid for child in children}
        command.process.kill()
        until(
            lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children),
            10,
            "their end",
        )
    until(lambda: shared_memory() <= before, 10, "the end of the shared memory")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--source", "tape:x"], "available here"),
        (["--sink", "paper:"], "available here"),
        (["--source", "file:/no/such.mp4"], "no such file"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--strength", "loud"], "/strength takes a number"),
        (["--set", "colour=red"], "colour"),
        (["--set", "colour"], "NAME=VALUE"),
        (["--device", "abacus"], "abacus"),
        (["--size", "huge"], "WxH|512x512"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], expected: str) -> None:
    result = subprocess.run([*RUN, "--seconds", "60", *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("phosphene: ")
    assert any(text in last for text in expected.split("|"))


def test_a_port_in_use_names_the_option() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "bridge", "run", "--osc-port", port], capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 2
    assert "--osc-port" in result.stderr


def ndi_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which NDI discovers senders on the loopback, without a daemon."""
    (folder / "ndi-config.v1.json").write_text(
        json.dumps({"ndi": {"networks": {"ips": "127.0.0.1"}}}), encoding="utf-8"
    )
    return dict(os.environ) | {"NDI_CONFIG_DIR": str(folder)}


@pytest.mark.slow
def test_a_minute_from_ndi_to_ndi_under_osc(tmp_path: Path) -> None:
    environment = ndi_environment(tmp_path)
    sender = subprocess.Popen([sys.executable, str(PEER), "send", "test-in"], env=environment)
    seconds = int(MINUTE)
    length = seconds // 4
    try:
        options = shlex.split("--source ndi:test-in --sink ndi:test-out --steps 1 --strength 0.9 --prompt")
        with Command(*options, "red plasma", environment=environment) as command:
            command.wait_for("first transformed frame", 30)
            desk = SimpleUDPClient("127.0.0.1", command.osc_port())
            peer = subprocess.Popen(
                [sys.executable, str(PEER), "receive", "test-out", str(seconds)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert peer.stdout is not None
            reports: list[dict[str, object]] = []
            colours: dict[str, np.ndarray] = {}
            prompts = ["red plasma", "green plasma", "blue plasma"]
            for k, line in enumerate(peer.stdout):
                reports.append(json.loads(line))
                phase, moment = divmod(k, length)
                if moment == 0 and phase < 3:
                    desk.send_message("/phosphene/prompt", prompts[phase])
                elif moment == length // 3:
                    desk.send_message("/phosphene/seed", 100 + phase)
                elif moment == length // 2:
                    desk.send_message("/phosphene/strength", 0.95)
                elif moment == length - 2 and phase < 3:
                    colours[prompts[phase]] = np.array(reports[-1]["colour"])
                elif moment == length - 1 and phase == 3:
                    break
            assert peer.wait(20) == 0
            status = command.status()
    finally:
        sender.kill()
        sender.wait()
    rate = float(np.mean([report["frames"] for report in reports[2:]]))  # type: ignore[arg-type]
    different = float(np.mean([report["pictures"] for report in reports[2:]]))  # type: ignore[arg-type]
    engine = status["engine"]
    print(
        f"{len(reports)} s: {rate:.1f} fps, {different:.1f} of them different; latency {status['latency_ms']:.0f} ms,"
        f" dropped {engine['dropped']} of {status['source_frames']}; colours "
        + ", ".join(f"{prompt} {colour.round().astype(int).tolist()}" for prompt, colour in colours.items())
    )
    assert reports[-1]["size"] == [256, 256]
    assert different > 4
    assert status["refused"] == 0
    assert status["parameters"]["/prompt"] == "blue plasma"
    assert status["parameters"]["/seed"] == 103
    assert status["parameters"]["/strength"] == pytest.approx(0.95)
    for channel, prompt in enumerate(prompts):
        assert int(colours[prompt].argmax()) == channel, f"{prompt} looks like {colours[prompt]}"


def test_an_ndi_sender_that_leaves_and_returns_larger_is_read_again(tmp_path: Path) -> None:
    def peer(width: int, height: int) -> subprocess.Popen[bytes]:
        code = f"""
import sys
sys.path.insert(0, {str(PEER.parent)!r})
import ndi_peer
ndi_peer.WIDTH, ndi_peer.HEIGHT = {width}, {height}
ndi_peer.send('coming-back')
"""
        return subprocess.Popen([sys.executable, "-c", code], env=environment)

    environment = ndi_environment(tmp_path)
    sender = peer(160, 120)
    try:
        with Command(
            "--source", "ndi:coming-back", "--sink", "null:", "--size", "64x64", environment=environment
        ) as command:
            command.wait_for("first transformed frame", 30)
            sender.kill()
            sender.wait()
            command.wait_for("waiting for it to come back", 30)
            before = command.status()["source_frames"]
            sender = peer(640, 360)
            until(lambda: command.status()["source_frames"] > before + 10, 30, "the sender's return")
            assert command.status()["engine_starts"] == 1
    finally:
        sender.kill()
        sender.wait()


def test_doctor_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    checks = capsys.readouterr().out
    assert "the built-in models load on" in checks
    for scheme in ("pattern:", "file:", "camera:", "ndi:", "spout:", "syphon:", "touchshm:", "null:"):
        assert scheme in checks
    assert main(["sources"]) == 0
    assert "pattern:plasma" in capsys.readouterr().out


def test_a_killed_show_resumes_where_it_was(tmp_path: Path) -> None:
    """After kill -9 the same command has every value and the cue again; after Ctrl-C it resumes nothing."""
    log = tmp_path / "show.jsonl"
    files = ("--session", str(tmp_path / "session.json"), "--log", str(log))
    arguments = (*shlex.split("--sink null: --size 64x64 --set cue/list=demo"), *files)
    with Command(*arguments) as command:
        command.wait_for("first transformed frame", 30)
        desk = SimpleUDPClient("127.0.0.1", command.osc_port())
        for name, value in {"/cue/go": 1, "/prompt": "green aurora", "/strength": 0.35, "/freeze": 1}.items():
            desk.send_message(f"/phosphene{name}", value)
        until(lambda: command.status()["parameters"]["/freeze"] is True, 5)
        before = command.status()["parameters"]
        time.sleep(0.6)
        engine = psutil.Process(command.status()["engine_pid"])
        command.process.kill()
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 10, "the engine's end")
    with Command(*arguments) as command:
        assert "cue 1" in command.wait_for(r"resumed +\d+ values from before the crash(, cue \d)?", 20)[0]
        command.wait_for("first transformed frame", 30)
        status = command.status()
        assert status["parameters"] == before
        assert status["show"]["cues"]["current"] == "1"
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(15) == 0
    with Command(*arguments, "--seconds", "1") as command:
        command.process.wait(30)
        assert "resumed" not in command.output
    events = [json.loads(line)["event"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert sum(event.startswith("phosphene ") and event.endswith(" starts") for event in events) == 3
    assert sum(event.startswith("engine ready") for event in events) >= 2
    assert "phosphene ends" in events
