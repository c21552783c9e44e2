"""The benchmarks: alternating turns, ratios, the work that rows compare, and the command from options to files."""

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

from bridge.commands.bench import TABLES, draw_still_passages, label
from engine.bench.diffusers_baseline import DiffusersBaseline
from engine.bench.measure import RUNS_PER_TURN, Timings, compare, compare_work, time_in_turns
from engine.models import BUILT_IN
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from tests.engine.flows import save_sd3

pytestmark = pytest.mark.slow


def test_compared_runs_alternate_in_turns() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004)

    times = time_in_turns({"slow": slow, "quick": lambda: order.append("quick")}, 5, torch.device("cpu"))
    turn = ["slow"] * (1 + RUNS_PER_TURN) + ["quick"] * (1 + RUNS_PER_TURN)
    assert order == ["slow", "quick", *turn, *turn], "once to warm up, then turns whose first run does not count"
    assert [len(timings.seconds) for timings in times.values()] == [5, 5]
    row = compare(times["quick"], times["slow"])
    assert row["ratio"] > 2, "baseline / phosphene: above 1 is faster"
    assert row["baseline_ms"] >= 4
    assert Timings([0.001, 0.002, 0.003]).median_ms == 2.0
    assert compare(Timings([0.02]), Timings([0.01]))["ratio"] == 0.5


def test_a_row_names_the_work_of_both_sides() -> None:
    assert compare_work("rows", 4, 8) == {"phosphene_rows": 4, "baseline_rows": 8}
    same = compare_work("rows", 2, 2)
    assert same["note"] == "no comparison: same rows"
    assert label({"steps": 1, "mode": "onetime", **same}) == "1\nonetime\n2 | 2 rows"


def test_the_clip_with_still_passages_moves_and_stops() -> None:
    pictures = draw_still_passages(32, 80)
    same = [bool((one == two).all()) for one, two in pairwise(pictures)]
    assert not any(same[:20])
    assert all(same[20:39])
    assert not any(same[41:59])


def test_the_command_writes_every_requested_table(tmp_path: Path) -> None:
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
    tables = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert set(tables) == set(TABLES) - {"start"}
    assert tables["device"][0]["torch"] == torch.__version__
    for table in ("autopipeline", "stream_batch", "guidance", "similarity"):
        assert tables[table], table
        assert all(row["ratio"] > 0 for row in tables[table]), table
    assert {row["mode"] for row in tables["guidance"]} == {"self", "onetime"}
    for row in tables["guidance"]:
        rows = row["phosphene_rows"], row["baseline_rows"]
        assert rows == ({"self": row["steps"], "onetime": row["steps"] + 1}[row["mode"]], 2 * row["steps"])
        assert ("note" in row) == (rows == (2, 2)), "with the same rows on both sides there is nothing to compare"
    assert ["note" in row for row in tables["stream_batch"]] == [True, False], "one step is one call either way"
    assert "note no comparison: same rows" in result.stdout
    assert "growth: a tick by size, steps, frame buffer and prompts\n  not measured with these options" in result.stdout
    assert tables["regions"] == [], "a U-Net computes all of its pixels"
    still = next(row for row in tables["similarity"] if row["clip"] == "still")
    assert still["skipped"] > 40
    assert {"engine: encode", "engine: denoise", "engine: decode", "whole"} <= {
        row["stage"] for row in tables["latency"]
    }
    assert all(0 < row["mfu"] < 1 for row in tables["mfu"])
    for name in ("autopipeline", "stream_batch", "guidance"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 2000


def test_regions_are_measured_for_a_transformer(tmp_path: Path) -> None:
    model, output = save_sd3(tmp_path / "sd3", t5=False), tmp_path / "out"
    command = [sys.executable, "-m", "bridge", "bench", "--quick", "--only", "regions", "--model", str(model)]
    result = subprocess.run(
        [*command, "--side", "64", "--accelerate", "eager", "--device", "cpu", "--output", str(output)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = json.loads((output / "bench.json").read_text())["regions"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["from noise", "live", "real sizes"]
    assert len({row["clip"] for row in rows if row["part"] == "live"}) == 3
    sizes = [row for row in rows if row["part"] == "real sizes"]
    assert {row["model"] for row in sizes} == {"SD3 medium", "Lumina-Next"}
    assert all(row["ratio"] > 0 for row in sizes if row["what"] == "step")
    assert sum(row["what"] == "28 steps, run" for row in sizes) == 2
    assert (output / "regions.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_diffusers_baseline_runs_in_a_separate_process(name: str) -> None:
    pixels = np.full((64, 64, 3), 90, np.uint8)
    with DiffusersBaseline(name, [torch.float32], torch.device("cpu"), EngineOptions("cpu"), "a wave", 1) as baseline:
        baseline(torch.float32, pixels, 1)
        assert baseline._process.pid not in (None, os.getpid())
        baseline._process.kill()
        with pytest.raises(InvalidValue, match="has ended"):
            baseline(torch.float32, pixels, 1)
    with (
        pytest.raises(InvalidValue, match="nowhere"),
        DiffusersBaseline("/nowhere", [torch.float32], torch.device("cpu"), EngineOptions("cpu"), "a wave", 1),
    ):
        pass


def test_an_unknown_table_is_a_one_line_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bridge", "bench", "--only", "speed", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "--only takes device, autopipeline" in result.stderr
    assert "Traceback" not in result.stderr


def test_parameters_that_the_command_sets_itself_are_rejected(tmp_path: Path) -> None:
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
