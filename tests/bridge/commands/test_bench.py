"""The bench: fair turns, honest ratios, and the command from its options to its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from bridge.commands.bench import TABLES, with_still_passages
from engine.bench.diffusers_baseline import Peer
from engine.bench.measure import TURN, Times, compared, in_turns
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

pytestmark = pytest.mark.slow


def test_what_is_compared_runs_in_turns() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004)

    times = in_turns({"slow": slow, "quick": lambda: order.append("quick")}, 5, torch.device("cpu"))
    turn = ["slow"] * (1 + TURN) + ["quick"] * (1 + TURN)
    assert order == ["slow", "quick", *turn, *turn], "once to warm up, then turns whose first run does not count"
    assert [len(found.seconds) for found in times.values()] == [5, 5]
    row = compared(times["quick"], times["slow"])
    assert row["ratio"] > 2, "theirs over ours: above 1 is faster"
    assert row["theirs_ms"] >= 4
    assert Times([0.001, 0.002, 0.003]).median == 2.0
    assert compared(Times([0.02]), Times([0.01]))["ratio"] == 0.5


def test_the_clip_with_still_passages_moves_and_stands() -> None:
    pictures = with_still_passages(32, 80)
    same = [bool((one == two).all()) for one, two in pairwise(pictures)]
    assert not any(same[:20])
    assert all(same[20:39])
    assert not any(same[41:59])


def test_the_command_writes_every_table_it_was_asked_for(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bridge",
        "bench",
        "--quick",
        "--side",
        "64",
        "--accelerate",
        "eager",
        "--device",
        "cpu",
    ]
    result = subprocess.run(
        [*command, "--only", ",".join(name for name in TABLES if name != "start"), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert set(found) == set(TABLES) - {"start"}
    assert found["device"][0]["torch"] == torch.__version__
    for table in ("autopipeline", "stream_batch", "guidance", "similarity"):
        assert found[table], table
        assert all(row["ratio"] > 0 for row in found[table]), table
    assert {row["mode"] for row in found["guidance"]} == {"self", "onetime"}
    still = next(row for row in found["similarity"] if row["clip"] == "still")
    assert still["skipped"] > 40
    assert {"engine: encode", "engine: denoise", "engine: decode", "whole"} <= {
        row["stage"] for row in found["latency"]
    }
    assert all(0 < row["mfu"] < 1 for row in found["mfu"])
    for name in ("autopipeline", "stream_batch", "guidance"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 2000


def test_the_pipeline_that_is_compared_runs_in_a_process_of_its_own() -> None:
    pixels = np.full((64, 64, 3), 90, np.uint8)
    with Peer("pocket", [torch.float32], torch.device("cpu"), EngineOptions("cpu"), "a wave", 1) as peer:
        peer(torch.float32, pixels, 1)
        assert peer._process.pid not in (None, os.getpid())
        peer._process.kill()
        with pytest.raises(InvalidValue, match="has ended"):
            peer(torch.float32, pixels, 1)
    with (
        pytest.raises(InvalidValue, match="nowhere"),
        Peer("/nowhere", [torch.float32], torch.device("cpu"), EngineOptions("cpu"), "a wave", 1),
    ):
        pass


def test_a_table_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bridge", "bench", "--only", "speed", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "--only takes device, autopipeline" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_says_what_it_would_not_heed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bridge",
        "bench",
        "--size",
        "128x128",
        "--steps",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "bench sets /size, /steps itself; a working size is --side N" in result.stderr
