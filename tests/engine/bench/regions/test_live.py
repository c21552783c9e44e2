"""Live streams: the clips that are made, what each row counts, and the verdicts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine.bench.measure import Row
from engine.bench.regions import live
from engine.bench.regions.live import add_verdict, list_methods, psnr_of_repeats, still_background, stop_and_go
from engine.models import Model
from engine.shared.frame import Pixels


def noise(count: int, side: int = 64) -> list[Pixels]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (side, side, 4), dtype=np.uint8) for _ in range(count)]


def test_a_clip_moves_for_a_second_and_stands_still_for_one() -> None:
    pictures = noise(50, 8)
    same = [one is two for one, two in pairwise(stop_and_go(pictures, 10))]
    assert same == ([False] * 10 + [True] * 10) * 2 + [False] * 9


def test_a_patch_moves_over_a_background_that_stands_still() -> None:
    pictures = noise(60)
    frames = still_background(pictures)
    changed = [(frame != pictures[0]).any(2) for frame in frames]
    assert all(0 < mask.mean() < 0.06 for mask in changed[1:]), "a disc of a quarter of the side"
    centres = np.array([np.argwhere(mask).mean(0) for mask in changed[1:]])
    assert np.ptp(centres[:, 0]) > 30
    assert np.ptp(centres[:, 1]) > 30
    assert len(frames) == 60


def test_every_mode_is_compared() -> None:
    methods = [(method.name, method.share) for method in list_methods(quick=False)]
    regions = [(mode, share) for mode in ("change", "both") for share in (0.5, 0.25, 0.125)]
    assert methods == [("off", None), *regions, ("similarity filter", None), ("every second frame", None)]


@pytest.mark.slow
def test_a_row_counts_tokens_and_calls(model: Model) -> None:
    still = [noise(1)[0]] * 40
    rows = {row["mode"]: row for row in live.measure(model, 64, {"still": still}, (2,), quick=True)}
    assert list(rows) == ["off", "change", "both", "similarity filter", "every second frame"]
    assert {row["frames"] for row in rows.values()} == {30}
    assert all(row["fps"] > 0 and (row["clip"], row["steps"]) == ("still", 2) for row in rows.values())
    assert (rows["off"]["computed"], rows["off"]["without_call"], rows["off"]["psnr_db"]) == (1.0, 0, None)
    assert rows["every second frame"]["computed"] == 0.5
    assert rows["every second frame"]["without_call"] == 15
    filtered = rows["similarity filter"]
    assert filtered["computed"] == pytest.approx(1 - filtered["without_call"] / 30, abs=1e-3)
    assert filtered["without_call"] > 20
    assert rows["change"]["computed"] < 0.1, "a still picture is only refreshed"
    assert rows["change"]["psnr_db"] is None or rows["change"]["psnr_db"] > 40
    moving = {row["mode"]: row for row in live.measure(model, 64, {"moving": noise(30)}, (1,), quick=True)}
    assert moving["change"]["computed"] == moving["both"]["computed"] == 0.25
    assert moving["change"]["psnr_db"] < 60
    assert "psnr_db of repeated frames" in moving["change"]


def _row(mode: str, fps: float, quality: float | None) -> Row:
    share = {"share": 0.25} if mode in ("change", "both") else {}
    return {"mode": mode, "steps": 1, "fps": fps, "psnr_db": quality} | share


def test_a_row_says_where_it_loses_at_equal_time() -> None:
    dense = [np.full((2, 2, 3), value, np.uint8) for value in range(50)]
    rows = [_row("off", 10.0, None), _row("similarity filter", 30.0, 20.0)]
    assert psnr_of_repeats(dense, 1.0, 2) is None, "all frames are computed"
    halved = psnr_of_repeats(dense, 0.5, 1)
    assert halved == pytest.approx(10 * np.log10(255**2 / 0.5), abs=0.005), "every second one is a level off"
    verdict = add_verdict(_row("change", 20.0, 45.0), rows, dense)
    assert verdict["psnr_db of repeated frames"] == halved
    assert verdict["psnr_db verdict"] == "loses to repeated frames by 6.1; beats similarity filter by 25.0"
    assert add_verdict(_row("change", 40.0, 60.0), rows, dense)["psnr_db verdict"].startswith("beats repeated frames")
    assert add_verdict(_row("both", 9.0, 45.0), rows, dense)["psnr_db verdict"].startswith("loses to the dense stream")
    assert add_verdict(rows[0], rows, dense) == rows[0]
