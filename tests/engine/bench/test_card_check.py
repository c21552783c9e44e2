"""The checklist for a lent card, in its reduced form on the CPU: every check says something or says why not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engine.bench import card_check, card_checks
from engine.bench.card_check import NEEDS_CUDA, TOTAL_SECONDS, run_checks
from engine.bench.card_checks import CHECKS, Card, Check, Deadline, find_host_waits
from engine.bench.measure import EnergyMeter, Row
from engine.bench.small_weights import FAMILIES
from tests.engine.compile.fake_graphs import FakeGraphs

CPU = torch.device("cpu")


def test_the_checks_fit_into_nine_minutes() -> None:
    assert sum(check.seconds for check in CHECKS) <= TOTAL_SECONDS == 9 * 60


def test_the_reduced_form_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card_check.main(["--device", "cpu", "--quick", "--output", str(tmp_path)]) == 0
    [file] = tmp_path.iterdir()
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert file.name == f"card-cpu-{time.strftime('%Y-%m-%d')}.json"
    machine = result.pop("machine")
    assert (machine["device"], machine["quick"], machine["torch"]) == ("cpu", True, torch.__version__)
    assert list(result) == [check.name for check in CHECKS]
    for name in ("waits", "capture", "memory"):
        assert result[name] == [{"result": NEEDS_CUDA}]
    ticks = {row["tick"]: row for row in result["tick"] if "tick" in row}
    assert ticks["eager"]["ms"] > 0
    assert ticks["graphs"]["result"] == ticks["compile"]["result"] == NEEDS_CUDA
    assert [row["swaps"] for row in result["swaps"] if "swaps" in row] == [3]
    assert [row["strength"] for row in result["strength"] if "strength" in row] == ["at rest", "moved"]
    scanned = {(row["family"], row["dtype"]): row["result"] for row in result["nan"] if "family" in row}
    assert scanned == {(family, dtype): "finite" for family in FAMILIES for dtype in ("float32", "bfloat16")}
    printed = capsys.readouterr().out
    assert f"  waits: result {NEEDS_CUDA}" in printed
    assert str(file) in printed
    assert card_check.main(["--device", "cpu", "--quick", "--only", "waits", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 2, "an earlier result is kept"


def test_a_check_that_fails_or_takes_long_leaves_time_for_the_others() -> None:
    def fail(_card: Card, _deadline: Deadline) -> Iterator[Row]:
        yield {"row": 1}
        raise RuntimeError("no kernel image is available")

    def wait(_card: Card, deadline: Deadline) -> Iterator[Row]:
        while not deadline.has_passed:
            time.sleep(0.01)
        yield {"left": deadline.left <= 0}

    checks = [
        Check("fails", "", 10, False, fail),
        Check("waits", "", 1.1, False, wait),
        Check("late", "", 10, False, fail),
    ]
    rows = list(run_checks(Card(CPU, True), checks, total_seconds=2.0))
    assert ("fails", {"row": 1}) in rows
    assert ("fails", {"result": "failed: no kernel image is available"}) in rows
    assert ("waits", {"left": True}) in rows
    assert rows[-1] == ("late", {"result": "not run: no time left"})


@pytest.mark.filterwarnings("ignore")  # of the stream that is opened before they are counted
def test_host_waits_are_counted_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    card = Card(CPU, True)
    begin = type(card.open_stream()).begin

    def waiting(stream: Any, frames: Any) -> Any:
        if stream.snapshot.effects.feedback.amount:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return begin(stream, frames)

    monkeypatch.setattr("engine.diffusion.stream.Stream.begin", waiting)
    rows = {row["feature"]: row for row in find_host_waits(card, Deadline(60))}
    assert rows["plain"]["waits"] == 0
    assert rows["feedback"]["waits"] == rows["feedback"]["ticks"] == 5
    assert [place.split(":")[0] for place in rows["feedback"]["where"]] == ["test_card_check.py"]
    assert modes == ["warn", "default"] * len(rows)


def test_the_checks_of_graphs_run_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_checks, "open_graph_runtime", lambda _device: FakeGraphs())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 3 << 20)
    monkeypatch.setattr(card_checks, "FAMILIES", {name: FAMILIES[name] for name in ("sd3", "lumina2")})
    card = Card(CPU, True)
    recorded = list(card_checks.record_parts(card, Deadline(60)))
    assert [(row["part"], row["rows"]) for row in recorded] == [
        ("denoiser", 2),
        ("denoiser", 1),
        ("decoder", 1),
        ("encoder", 1),
    ]
    assert {row["result"] for row in recorded} == {"recorded"}
    memory = list(card_checks.measure_memory(card, Deadline(60)))
    assert [(row["rows"], row["mib"], row["added_mib"], row["state"]) for row in memory] == [
        (rows, 3, 0, "graphs") for rows in (8, 6, 4, 3, 2, 1)
    ]
    assert not any(component.backends for component in card.model.compiled_modules)
    scanned = {row["family"]: row for row in card_checks.scan_for_nan(card, Deadline(60)) if row["dtype"] == "float32"}
    assert scanned["sd3"]["recorded"] == ["denoiser", "decoder", "encoder"]
    assert scanned["lumina2"]["recorded"] == ["decoder", "encoder"]
    assert "no CUDA graphs of the denoiser" in scanned["lumina2"]["notes"][0]
    for check in (card_checks.record_parts, card_checks.measure_memory, card_checks.scan_for_nan):
        assert {row["result"] for row in check(card, Deadline(0))} == {"not run: no time left"}


class NVMLError(Exception):
    """What pynvml raises: neither a RuntimeError nor an OSError."""


@pytest.mark.parametrize("fails_at", ["nvmlInit", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_card_without_an_energy_counter_is_measured_all_the_same(
    fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("pynvml")
    module.__dict__["NVMLError"] = NVMLError
    for name in ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTotalEnergyConsumption"):
        module.__dict__[name] = lambda *_: 5000

    def fail(*_: object) -> None:
        raise NVMLError("not supported")

    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    meter = EnergyMeter(torch.device("cuda"))
    assert meter.joules() == 0.0
    assert meter._handle is not None
    module.__dict__[fails_at] = fail
    meter = EnergyMeter(torch.device("cuda"))
    assert (meter._handle, meter.joules()) == (None, 0.0)
