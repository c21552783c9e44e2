"""Comparison at equal time: decibels, interpolation over time, and the sentence on who loses."""

from __future__ import annotations

import numpy as np
import pytest

from engine.bench.regions.equal_time import at_time, judge, psnr, squared_error


def test_decibels_follow_from_the_error_of_all_pictures() -> None:
    one, two = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3, 3), 100, np.uint8)
    two[0] = 90
    assert squared_error(one, two) == squared_error(two, one) == 50.0
    assert psnr([50.0, 0.0]) == pytest.approx(20 * np.log10(255 / 5), abs=0.005)
    assert psnr([0.0, 0.0]) is None


def test_a_method_is_interpolated_over_its_times() -> None:
    curve = [(30.0, 40.0), (10.0, 20.0), (20.0, 26.0), (25.0, None)]
    assert at_time(curve, 15.0) == 23.0
    assert at_time(curve, 25.0) == 33.0
    assert (at_time(curve, 1.0), at_time(curve, 99.0)) == (20.0, 40.0), "its nearest setting"
    assert at_time([(10.0, None)], 10.0) is None


def test_the_sentence_names_each_side() -> None:
    others = {"fewer steps": 33.0, "random": 30.05, "reuse": 27.0, "none": None}
    assert judge(30.0, others, 0.1) == "loses to fewer steps by 3.0; equals random; beats reuse by 3.0"
    assert (
        judge(30.0, others, 0.1, higher_wins=False) == "loses to reuse by 3.0; equals random; beats fewer steps by 3.0"
    )
    assert judge(None, others, 0.1) == judge(30.0, {}, 0.1) == ""
