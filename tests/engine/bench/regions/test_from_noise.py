"""Pictures from noise: what is compared, what each row holds, and the verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from engine.bench.measure import Row
from engine.bench.regions import from_noise
from engine.bench.regions.from_noise import add_verdict, draw_at, list_samplings
from engine.models import Model
from engine.training.pocket.evaluate import draw_prompts, fixed_prompts


def test_every_way_is_compared_at_both_numbers_of_steps() -> None:
    samplings = list_samplings(quick=False)
    assert (samplings[0].method, samplings[0].steps) == ("dense", 28)
    assert sorted(s.steps for s in samplings if s.method == "dense") == [4, 6, 8, 10, 12, 14, 16, 20, 24, 28]
    focus = [(s.steps, s.values["/regions/metric"], s.share) for s in samplings if s.method.startswith("focus")]
    assert len(set(focus)) == len(focus) == 2 * 3 * 3
    assert {share for _, _, share in focus} == {0.5, 0.25, 0.125}


@pytest.mark.slow
def test_a_row_holds_times_and_quality(model: Model) -> None:
    rows = list(from_noise.measure(model, 64, 2, quick=True))
    assert rows[0]["method"] == "drawn, other seeds"
    by_method = {(row["method"], row["steps"], row.get("interval")): row for row in rows[1:]}
    assert len(by_method) == len(rows) - 1
    full = by_method["dense", 28, None]
    assert (full["psnr_db"], full["computed"]) == (None, 1.0)
    assert full["picture_ms"] >= full["denoiser_ms"] > by_method["dense", 4, None]["denoiser_ms"] > 0
    for metric in ("std", "l2", "random"):
        row = by_method[f"focus {metric}", 12, None]
        assert row["computed"] == (4 * 16 + 8 * 4) / (12 * 16), "4 full steps, then 4 of the 16 tokens"
        assert 5 < row["psnr_db"] < by_method["dense", 12, None]["psnr_db"] + 20
        assert "psnr_db of fewer full steps" in row
    assert "psnr_db of random tokens" not in by_method["focus random", 12, None]
    assert by_method["reuse", 12, 2]["computed"] == pytest.approx(8 / 12, abs=1e-3)
    assert by_method["reuse", 12, 0]["computed"] == pytest.approx(4 / 12, abs=1e-3)
    assert all(row["distance"] >= 0 and row["energy 1/4–"] > 0 for row in by_method.values())


def test_drawn_pictures_have_the_size_that_is_asked_for() -> None:
    prompts = fixed_prompts(2)
    small, large = draw_at(64, prompts, 1), draw_at(256, prompts, 1)
    assert small[0].shape == (64, 64, 3)
    assert all(np.array_equal(one, two) for one, two in zip(large, draw_prompts(prompts, 1), strict=True))


def _row(method: str, steps: int, time: float, quality: float | None, distance: float) -> Row:
    return {"method": method, "steps": steps, "denoiser_ms": time, "psnr_db": quality, "distance": distance}


def test_a_row_says_where_it_loses_at_equal_time() -> None:
    rows = [
        _row("dense", 28, 280.0, None, 20.0), _row("dense", 12, 120.0, 30.0, 30.0), _row("dense", 4, 40.0, 22.0, 40.0),
        _row("reuse", 12, 80.0, 24.0, 36.0), _row("reuse", 28, 80.0, 50.0, 0.0),
        _row("focus random", 12, 80.0, 25.0, 35.2),
    ]  # fmt: skip
    std = _row("focus std", 12, 80.0, 25.0, 35.0)
    verdict = add_verdict(std, [*rows, std])
    assert verdict["psnr_db of fewer full steps"] == 26.0
    assert verdict["psnr_db of whole-frame reuse"] == 24.0, "that of as many steps"
    assert verdict["psnr_db verdict"] == (
        "loses to fewer full steps by 1.0; equals random tokens; beats whole-frame reuse by 1.0"
    )
    assert verdict["distance verdict"] == ("equals fewer full steps, random tokens; beats whole-frame reuse by 1.0"), (
        "less is better"
    )
    slow = _row("focus std", 12, 130.0, 29.0, 30.0)
    assert add_verdict(slow, [*rows, slow])["psnr_db verdict"].endswith("; no faster than as many full steps")
    assert add_verdict(rows[0], rows) == rows[0]
