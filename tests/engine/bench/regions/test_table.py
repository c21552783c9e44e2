"""The table: the models it is for, the clips it adds, the calls it compiles; and the plot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engine.bench.measure import Row
from engine.bench.regions.plot import draw_regions
from engine.bench.regions.table import compile_parts, extend_clips, measure_regions
from engine.compile.dispatch import CallSignature
from engine.models import Model


def test_a_model_that_computes_everything_has_no_rows() -> None:
    bench: Any = SimpleNamespace(model=SimpleNamespace(architecture=SimpleNamespace(regional_transformer=None)))
    assert list(measure_regions(bench, {}, quick=True)) == []


def test_two_clips_are_made_of_the_first() -> None:
    pictures = [np.full((16, 16, 4), i, np.uint8) for i in range(200)]
    clips = extend_clips({"a": pictures, "b": pictures[:9]}, quick=False)
    assert {name: len(frames) for name, frames in clips.items()} == {
        "a": 120, "b": 9, "a, stop and go": 120, "a, still background": 120,
    }  # fmt: skip
    assert clips["a, stop and go"][30:60] == [pictures[30]] * 30
    assert clips["a, still background"][50][0, 0, 0] == 0


def test_each_call_of_the_regional_transformer_is_compiled(model: Model) -> None:
    regions = model.architecture.compiled_regions
    assert regions is not None
    requested: list[CallSignature | None] = []
    compile_parts(model, 64, lambda: requested.append(regions.requested))
    assert None not in requested
    assert len(set(requested)) == 1 + 4 * 2, "all tokens, and four shares with and without text"


class FigureAlone:
    """The part of pyplot that the plot uses, without its list of figures."""

    @staticmethod
    def figure(**options: Any) -> Figure:
        return Figure(**options)


def test_the_plot_has_a_curve_for_each_method() -> None:
    painted: list[Row] = [
        {"part": "from noise", "method": method, "steps": steps, "denoiser_ms": time, "psnr_db": q, "distance": 9.0}
        for method, steps, time, q in [
            ("dense", 28, 30.0, None), ("dense", 12, 12.0, 30.0), ("dense", 4, 4.0, 20.0),
            ("focus std", 12, 9.0, 25.0), ("focus std", 12, 7.0, 22.0), ("focus std", 28, 15.0, 30.0),
            ("reuse", 28, 9.0, 20.0),
        ]
    ]  # fmt: skip
    streams: list[Row] = [
        {"part": "live", "clip": clip, "steps": steps, "mode": mode, "fps": fps, "psnr_db": 30.0} | more
        for clip in ("cat", "cat, stop and go")
        for steps in (1, 2)
        for mode, fps, more in (
            ("off", 10.0, {}),
            ("change", 20.0, {"share": 0.25, "psnr_db of repeated frames": 31.0}),
            ("both", 15.0, {"share": 0.25, "psnr_db of repeated frames": 33.0}),
        )
    ]
    drawn: Row = {"part": "from noise", "method": "drawn, other seeds", "distance": 1.0}
    figure = draw_regions(FigureAlone, [drawn, *painted, *streams])
    above, below = figure.subfigs
    curves = {line.get_label(): line for line in above.axes[0].lines}
    assert set(curves) == {"fewer full steps", "focus std, 12 steps", "focus std, 28 steps", "reuse, 28 steps"}
    assert list(curves["fewer full steps"].get_xdata()) == [4.0, 12.0], "the full picture has no PSNR"
    assert list(curves["focus std, 12 steps"].get_ydata()) == [22.0, 25.0], "by time"
    assert [axes.get_title() for axes in below.axes] == ["cat", "cat, stop and go"]
    repeats = next(line for line in below.axes[0].lines if line.get_label() == "repeated frames")
    assert (list(repeats.get_xdata()), list(repeats.get_ydata())) == ([15.0, 20.0], [33.0, 31.0])
