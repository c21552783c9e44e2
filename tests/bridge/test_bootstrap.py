"""The one command from a checkout to a running show: its steps and names, and that it waits for the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bridge.install.stand_ins import StandIn
from tests.house.sources import ROOT
from tests.programs import needs_shell

#: Runs a program to its end, as the command does, and prints the exit code. Restores Ctrl-C, which a shell's
#: background processes ignore.
STARTER = """
import signal, sys
from bridge.bootstrap import run_to_end
signal.signal(signal.SIGINT, signal.default_int_handler)
print("exit code", run_to_end([sys.executable, "-c", sys.argv[1]]))
"""
#: Takes its time to end after Ctrl-C.
SHOW = """
import time
try:
    print("running", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(1.5)
    print("finished", flush=True)
    raise SystemExit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="a signal to a process group")
def test_the_show_is_waited_for_after_ctrl_c() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, SHOW], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline() == "running\n"
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.communicate(timeout=20)[0].splitlines() == ["finished", "exit code 7"]
    finally:
        starter.kill()


@needs_shell
@pytest.mark.parametrize(
    ("task", "extra", "started"),
    [("run", "ndi", "-m|bridge|run|--open|--prompt|two words|"), ("test", "test", "-m|pytest|--prompt|two words|")],
)
def test_it_installs_and_starts_in_an_environment_named_from_another_folder(
    tmp_path: Path, task: str, extra: str, started: str
) -> None:
    environment = StandIn(tmp_path / "an environment", sys.platform)
    command = [sys.executable, "-m", "bridge.bootstrap", "--venv", "an environment", task, "--prompt", "two words"]
    variables = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert result.returncode == 5, result.stderr
    assert f"{ROOT}[{extra}]" in environment.take_calls()[-1]
    assert (environment.folder / "started").read_text(encoding="utf-8") == f"{ROOT}|{started}"


@needs_shell
def test_a_failed_installation_starts_nothing(tmp_path: Path) -> None:
    environment = StandIn(tmp_path / "environment", sys.platform)
    environment.fail("install")
    command = [sys.executable, "-m", "bridge.bootstrap", "--venv", str(environment.folder), "run"]
    result = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert not (environment.folder / "started").exists()


def test_the_old_module_name_prints_the_same_help() -> None:
    def show_help(module: str) -> str:
        command = [sys.executable, "-m", module, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert show_help("bridge.fresh") == show_help("bridge.bootstrap")
    assert "python3 -m bridge.bootstrap" in show_help("bridge.fresh")
