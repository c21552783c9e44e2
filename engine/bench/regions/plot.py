"""The plot of the regions' table: quality by time from noise, and by frame rate live, with a curve for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.bench.measure import Row

COLOURS = {
    "dense": "#8a8f98", "reuse": "#202124", "focus std": "#c2187f", "focus l2": "#f28c28", "focus random": "#3a86c8",
    "change": "#c2187f", "both": "#f28c28", "similarity filter": "#3a86c8", "every second frame": "#202124",
}  # fmt: skip
MEASURES = {"psnr_db": "PSNR to the full picture, dB", "distance": "Fréchet distance to drawn pictures"}
#: Steps of the live streams that are drawn.
LIVE_STEPS = 2


def draw_regions(pyplot: Any, rows: Sequence[Row]) -> Any:
    """Return a figure: above quality by the denoiser's time, below quality by frames a second of each clip."""
    painted = [row for row in rows if row["part"] == "from noise" and "denoiser_ms" in row]
    streams = [row for row in rows if row["part"] == "live" and row["steps"] == LIVE_STEPS]
    clips = list(dict.fromkeys(row["clip"] for row in streams))
    figure = pyplot.figure(figsize=(max(10.0, 3.4 * len(clips)), 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for axes, (measure, title) in zip(above.subplots(1, 2), MEASURES.items(), strict=True):
        draw_curves(axes, painted, measure)
        axes.set(xlabel="denoiser, ms a picture", ylabel=title)
    above.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    for axes, clip in zip(below.subplots(1, len(clips), sharey=True, squeeze=False)[0], clips, strict=True):
        draw_streams(axes, [row for row in streams if row["clip"] == clip])
        axes.set(title=clip, xlabel=f"frames a second, {LIVE_STEPS} steps", ylabel="PSNR to the dense stream, dB")
        axes.label_outer()
    below.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def draw_curves(axes: Any, rows: Sequence[Row], measure: str) -> None:
    """Draw a curve for each method and number of steps; the dense one runs over the numbers of steps."""
    curves: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["method"], 0 if row["method"] == "dense" else row["steps"]), []).append(row)
    fewest = min((steps for _, steps in curves if steps), default=0)
    for (method, steps), points in curves.items():
        points = sorted((row for row in points if row[measure] is not None), key=lambda row: row["denoiser_ms"])
        label = "fewer full steps" if not steps else f"{method}, {steps} steps"
        style = "o-" if steps != fewest else "s--"
        times, values = [row["denoiser_ms"] for row in points], [row[measure] for row in points]
        axes.plot(times, values, style, color=COLOURS[method], label=label, markersize=4)


def draw_streams(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a curve for each mode over its shares, and one of repeated frames at the same times."""
    for mode in dict.fromkeys(row["mode"] for row in rows if row["mode"] != "off"):
        points = [row for row in rows if row["mode"] == mode and row["psnr_db"] is not None]
        rates, values = [row["fps"] for row in points], [row["psnr_db"] for row in points]
        axes.plot(rates, values, "o-", color=COLOURS[mode], label=mode, markersize=4)
    repeats = sorted(
        (row["fps"], row["psnr_db of repeated frames"]) for row in rows if row.get("psnr_db of repeated frames")
    )
    axes.plot(*zip(*repeats, strict=True), "--", color=COLOURS["reuse"], label="repeated frames")
    axes.axvline(next(row["fps"] for row in rows if row["mode"] == "off"), color=COLOURS["dense"], label="dense stream")
