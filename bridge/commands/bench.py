"""``phosphene bench``: the paper's comparisons and the bridge's cost on this machine, as tables, JSON and plots."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bridge.commands.clip_reader import ClipReader
from bridge.commands.options import (
    add_engine_options,
    add_flag,
    add_option,
    engine_options,
    parameter_values,
)
from bridge.commands.output_check import report_failed_writes
from bridge.engine_process.tcmalloc import find_library, forget_preload, restart_with
from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.images import fit, resize
from bridge.textures import open_source
from bridge.textures.pattern import draw
from engine.shared.files import check_replaceable, replace_atomically, write_atomically
from engine.shared.frame import Frame, Pixels
from engine.shared.mailbox import Mailbox
from engine.shared.user_files import read_bytes

Row = dict[str, Any]
HELP = "measure this machine: the paper's comparisons as tables, JSON and plots"
#: Keys of the JSON in the order of measurement → a line on what the table compares or measures.
TABLES = {
    "device": "the machine, the model and the versions",
    "autopipeline": "a live frame (phosphene) against diffusers' AutoPipelineForImage2Image (baseline)",
    "stream_batch": "one denoiser call for all steps (phosphene) against one call a step (baseline)",
    "guidance": "denoiser under residual guidance (phosphene) against full guidance (baseline); rows: batch of a call",
    "similarity": "engine's time with the similarity filter (phosphene) against without it (baseline)",
    "latency": "one frame from texture in to texture out, by stage, at one step",
    "growth": "a tick by size, steps, frame buffer and prompts",
    "start": "from the command to the first transformed frame and to the compiled model",
    "mfu": "the denoiser's rate relative to that of large matrix products",
    "overhead": "time of the engine beyond its model calls, and of the bridge",
    "regions": "regions against fewer steps and repeated frames at equal time, and the time of a step by its share",
}
COMPARISONS = ("autopipeline", "stream_batch", "guidance")
#: Largest file that is read to see whether it is an earlier result.
MAX_RESULT_BYTES = 1 << 24
#: The side that the plots draw left and right of each other, with its colour.
SIDES = (("phosphene", -0.2, "#c2187f"), ("baseline", 0.2, "#8a8f98"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    architectures = ("pocket", "pocket-dit", "sd15", "sd-turbo", "sdxl-turbo", "sd3")
    size = "architecture with random weights, instead of a model"
    add_option(parser, "--architecture", choices=architectures, help=size)
    add_flag(parser, "--quick", help="fewer rounds and rows: under two minutes on a small machine")
    add_option(parser, "--clip", metavar="VIDEO", action="append", help="video for the similarity filter; repeatable")
    add_option(parser, "--only", metavar="TABLES", help="comma-separated tables", default_text="all")
    side = "working size N x N; 0 for the model's own"
    add_option(parser, "--side", type=int, default=0, metavar="N", help=side)
    add_option(parser, "--output", metavar="DIR", default="bench", help="folder for bench.json and the plots")
    add_engine_options(parser)


def main(options: argparse.Namespace) -> int:
    """Measure, print each table as it comes, and write DIR/bench.json and a plot of each comparison."""
    values = parameter_values(options)
    restart_with(find_library())  # measure with the allocator that the engine's process uses
    forget_preload()
    folder = expand_user(options.output)
    check_folder(folder)
    from engine.bench.model import Bench
    from engine.bench.regions.table import measure_regions
    from engine.models import BUILT_IN

    requested = options.only.split(",") if options.only else list(TABLES)
    if unknown := [name for name in requested if name not in TABLES]:
        raise UserError(f"--only takes {', '.join(TABLES)}, got {unknown[0]!r}")
    if fixed := sorted(set(values) - {"/model", "/dtype"}):
        raise UserError(f"bench sets {', '.join(fixed)} itself; a working size is --side N")
    quick, name = options.quick, options.architecture or options.model or "pocket"
    with report_failed_writes(folder):
        folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    model = Bench(name, engine_options(options), 12 if quick else 40, options.side, options.dtype or "auto")
    clips = {Path(path).stem: read_clip(Path(path), model.side, 40 if quick else 200) for path in options.clip or ()}
    moving = dict(clips) or {"plasma": [draw("plasma", model.side, model.side, k / 30) for k in range(120)]}
    clips["still passages"] = draw_still_passages(model.side, 60 if quick else 240)
    clips["still"] = [draw("plasma", model.side, model.side, 0.0)] * (60 if quick else 120)
    measurements: dict[str, Callable[[], Iterable[Row]]] = {
        "device": lambda: [model.describe()],
        "autopipeline": lambda: model.autopipeline((1, 4) if quick else (1, 2, 4, 10)),
        "stream_batch": lambda: model.stream_batch((1, 4) if quick else (1, 2, 4, 8)),
        "guidance": lambda: model.guidance((1, 4) if quick else (1, 2, 3, 4, 5)),
        "similarity": lambda: model.similarity(clips),
        "latency": lambda: measure_latency(model, 60 if quick else 300),
        "growth": lambda: [] if quick else model.growth(),
        "start": lambda: measure_starts(name, quick) if name in BUILT_IN else [],
        "mfu": lambda: model.mfu((1, 4) if quick else (1, 2, 4, 8)),
        "overhead": lambda: [*model.overhead(), *measure_bridge(60 if quick else 300)],
        "regions": lambda: measure_regions(model, moving, quick),
    }
    tables: dict[str, list[Row]] = {}
    for table in (table for table in TABLES if table in requested):
        print(f"\n{table}: {TABLES[table]}", flush=True)
        tables[table] = []
        for row in measurements[table]():
            tables[table].append(row)
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if not tables[table]:
            print("  not measured with these options", flush=True)
    with report_failed_writes(folder):
        write_atomically(folder / "bench.json", json.dumps(tables, indent=1) + "\n")
        files = [folder / "bench.json", *plot_comparisons(tables, folder)]
    print(f"\n{time.perf_counter() - start:.0f} s → {files[0]}{''.join(f', {path.name}' for path in files[1:])}")
    return 0


def check_folder(folder: Path) -> None:
    """Check that the results may be written to ``folder``: they replace earlier results alone. Raises UserError."""
    if not folder.parent.is_dir():
        raise UserError(f"there is no folder {folder.parent}")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--output {folder} is not a folder")
    results = (folder / "bench.json", *(folder / f"{table}.png" for table in (*COMPARISONS, "regions")))
    existing = [path for path in results if os.path.lexists(path)]
    if not existing:
        return
    try:
        for path in existing:
            check_replaceable(path)
        tables = json.loads(read_bytes(results[0], MAX_RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        tables = None
    if not isinstance(tables, dict) or not tables.keys() <= TABLES.keys():
        raise UserError(f"{existing[0]} is no result of `phosphene bench`; choose another folder with --output")


def read_clip(path: Path, side: int, count: int) -> list[Pixels]:
    """Return the first ``count`` pictures of a video, scaled and cropped to side² as a show does. Raises UserError."""
    return [fit(pixels, side, side, "crop") for pixels in islice(ClipReader(path.expanduser()), count)]


def draw_still_passages(side: int, count: int) -> list[Pixels]:
    """Draw ``count`` frames of a pattern that moves for twenty frames and stands still for the next twenty."""
    return [draw("plasma", side, side, (k // 40 * 20 + min(k % 40, 20)) / 30) for k in range(count)]


def measure_latency(model: Any, count: int) -> Iterator[Row]:
    """Measure each stage of ``count`` frames from texture in to texture out at one step, in milliseconds."""
    from engine.bench.measure import StageTimer

    stages = StageTimer(model.model)
    stream = model.open_stream(stages.model, steps=1)
    names = ("capture", "mailbox in", "engine", "mailbox out", "send")
    seconds: dict[str, list[float]] = {name: [] for name in (*names, "whole")}
    inbox, outbox = _open_mailboxes()
    try:
        with open_source(f"pattern:plasma?fps=1000&size={model.side}x{model.side}") as source:
            for _ in range(count):
                marks = [time.perf_counter()]
                frame = None
                while frame is None:
                    frame = source.read(1.0)
                pixels = fit(frame.pixels, model.side, model.side, "crop")
                marks.append(time.perf_counter())
                received = _pass_on(inbox, Frame(pixels, frame.sequence, frame.captured_at))
                marks.append(time.perf_counter())
                outputs = stream.step([received]) or []
                marks.append(time.perf_counter())
                output = _pass_on(outbox, outputs[0])
                marks.append(time.perf_counter())
                resize(output.pixels, model.side, model.side)
                marks.append(time.perf_counter())
                for name, (start, end) in zip(names, pairwise(marks), strict=True):
                    seconds[name].append(end - start)
                seconds["whole"].append(marks[-1] - marks[0])
    finally:
        stream.close()
        inbox.close()
        outbox.close()
    for name, times in {**seconds, **{f"engine: {stage}": t for stage, t in stages.seconds.items()}}.items():
        yield {"stage": name, **percentiles(times[len(times) // 10 :])}


def measure_bridge(count: int) -> Iterator[Row]:
    """Measure the bridge's cost of a frame: without scaling, and with a large picture scaled down and up."""
    inbox, outbox = _open_mailboxes()
    try:
        for name, (width, height) in {
            "bridge, 512x512": (512, 512),
            "bridge, 1080p to 512x512 to 1080p": (1920, 1080),
        }.items():
            picture = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
            seconds = []
            for k in range(count):
                start = time.perf_counter()
                received = _pass_on(inbox, Frame(fit(picture, 512, 512, "crop"), k))
                output = _pass_on(outbox, received)
                resize(output.pixels, width, height)
                seconds.append(time.perf_counter() - start)
            yield {"what": name, **percentiles(seconds[count // 10 :])}
    finally:
        inbox.close()
        outbox.close()


def _open_mailboxes() -> tuple[Mailbox, Mailbox]:
    context = multiprocessing.get_context("spawn")
    return Mailbox(context), Mailbox(context)


def _pass_on(mailbox: Mailbox, frame: Frame) -> Frame:
    """Write ``frame`` into a mailbox and read it back."""
    mailbox.write(frame)
    received = mailbox.read()
    assert received is not None
    return received


def measure_starts(name: str, quick: bool) -> Iterator[Row]:
    """Measure a start without compiled artifacts and one with them; with ``quick`` one without compiling."""
    if quick:
        yield {"start": "eager", **time_start(["--model", name, "--accelerate", "eager"], {}, False)}
        return
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            environment = {"PHOSPHENE_CACHE": cache, "TMPDIR": cache}  # torch's compiler caches in TMPDIR
            yield {"start": state, **time_start(["--model", name], environment, True)}


def time_start(arguments: Sequence[str], environment: Mapping[str, str], compiled: bool) -> Row:
    """Start ``phosphene run`` in a new process; return the seconds to its first frame and, if ``compiled``, to that."""
    options = ["--osc-port", "0", "--http-port", "0", "--sink", "null:", "--steps", "1"]
    command = [sys.executable, "-m", "bridge", "run", *options, *arguments]
    row: Row = {}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if (match := re.search(r"first transformed frame ([\d.]+) s", line)) is not None:
                row["first_frame_s"] = float(match[1])
                if not compiled:
                    break
            if re.search(r"^(compiled|graphs|eager), \d+ s|not accelerated", line):
                row["compiled_s"] = round(time.perf_counter() - start, 1) if line.startswith("compiled") else None
                compiled = False
                if "first_frame_s" in row:
                    break
    finally:
        process.terminate()
        process.wait(20)
    return row


def percentiles(seconds: Sequence[float]) -> Row:
    """Return p50, p95 and p99 in milliseconds."""
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1000
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "p99_ms": round(float(p99), 2)}


def plot_comparisons(tables: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """Write a plot of each comparison and return the files; none where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install 'phosphene[bench]'")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from engine.bench.regions.plot import draw_regions

    files = []
    for table in (*COMPARISONS, "regions"):
        rows = tables.get(table, [])
        if not rows:
            continue
        figure = draw_regions(pyplot, rows) if table == "regions" else draw_bars(pyplot, table, rows)
        path = folder / f"{table}.png"
        with replace_atomically(path) as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
        files.append(path)
    return files


def draw_bars(pyplot: Any, table: str, rows: Sequence[Row]) -> Any:
    """Return a figure with the times of both sides for each row of a comparison."""
    figure, axes = pyplot.subplots(figsize=(max(4.0, 1.1 * len(rows)), 3.6), layout="constrained")
    positions = np.arange(len(rows))
    for side, shift, colour in SIDES:
        heights, spreads = [row[f"{side}_ms"] for row in rows], [row[f"{side}_spread_ms"] / 2 for row in rows]
        axes.bar(positions + shift, heights, 0.38, yerr=spreads, label=side, color=colour)
    for position, row in zip(positions, rows, strict=True):
        top = max(row["phosphene_ms"], row["baseline_ms"])
        axes.annotate(f"{row['ratio']}×", (position, top), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(positions, [label(row) for row in rows], fontsize=8)
    axes.set_ylabel("ms a frame")
    axes.set_title(table.replace("_", " "))
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    return figure


def label(row: Row) -> str:
    """Return the lines under a comparison's bars: steps, what varies, and the counted work of both sides."""
    lines = [str(row[key]) for key in ("steps", "mode", "baseline_dtype") if key in row]
    lines += [
        f"{row[f'phosphene_{unit}']} | {row[f'baseline_{unit}']} {unit}"
        for unit in ("rows", "calls")
        if f"baseline_{unit}" in row
    ]
    return "\n".join(lines)
