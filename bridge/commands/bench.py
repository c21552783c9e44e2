"""``phosphene bench``: the paper's comparisons and this bridge's own costs, on this machine, as tables, JSON and plots."""

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
from pathlib import Path
from typing import Any

import numpy as np

from bridge.commands.clip_reader import ClipReader
from bridge.commands.options import engine_options, parameter_values
from bridge.engine_process.tcmalloc import find_library, forget_preload, restart_with
from bridge.errors import UserError
from bridge.images import fit, resize
from bridge.textures import open_source
from bridge.textures.pattern import draw
from engine.shared.frame import Frame, Pixels
from engine.shared.mailbox import Mailbox

Row = dict[str, Any]
#: The JSON's keys, in the order in which they are measured.
TABLES = (
    "device",
    "autopipeline",
    "stream_batch",
    "guidance",
    "similarity",
    "latency",
    "growth",
    "start",
    "mfu",
    "overhead",
)


def bench(options: argparse.Namespace) -> int:
    """Measures, prints each table as it comes, and writes DIR/bench.json and a picture of each comparison."""
    values = parameter_values(options)
    restart_with(find_library())  # what it measures is to have what the engine's process has
    forget_preload()
    folder = Path(options.output).expanduser()
    if not folder.parent.is_dir():
        raise UserError(f"there is no folder {folder.parent}")
    from engine.bench.model import Bench

    wanted = options.only.split(",") if options.only else list(TABLES)
    unknown = [name for name in wanted if name not in TABLES]
    if unknown:
        raise UserError(f"--only takes {', '.join(TABLES)}, got {unknown[0]!r}")
    if others := sorted(set(values) - {"/model", "/dtype"}):
        raise UserError(f"bench sets {', '.join(others)} itself; a working size is --side N")
    quick, name = options.quick, options.architecture or options.model or "pocket"
    settings = engine_options(options)
    began = time.monotonic()
    subject = Bench(name, settings, 12 if quick else 40, options.side, options.dtype or "auto")
    clips = {Path(path).stem: frames_of(Path(path), subject.side, 40 if quick else 200) for path in options.clip or ()}
    clips["still passages"] = with_still_passages(subject.side, 60 if quick else 240)
    clips["still"] = [draw("plasma", subject.side, subject.side, 0.0)] * (60 if quick else 120)
    steps = (1, 4) if quick else (1, 2, 4, 10)
    makers: dict[str, Callable[[], Iterable[Row]]] = {
        "device": lambda: [subject.row()],
        "autopipeline": lambda: subject.autopipeline(steps),
        "stream_batch": lambda: subject.stream_batch((1, 4) if quick else (1, 2, 4, 8)),
        "guidance": lambda: subject.guidance((1, 4) if quick else (1, 2, 3, 4, 5)),
        "similarity": lambda: subject.similarity(clips),
        "latency": lambda: latency(subject, 60 if quick else 300),
        "growth": lambda: [] if quick else subject.growth(),
        "start": lambda: starts(name, quick) if name == "pocket" else [],
        "mfu": lambda: subject.mfu((1, 4) if quick else (1, 2, 4, 8)),
        "overhead": lambda: [*subject.overhead(), *crossings(60 if quick else 300)],
    }
    found: dict[str, list[Row]] = {}
    for table in TABLES:
        if table in wanted:
            print(f"\n{table}", flush=True)
            found[table] = []
            for row in makers[table]():
                found[table].append(row)
                print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plotted = plots(found, folder)
    print(
        f"\n{time.monotonic() - began:.0f} s → {folder / 'bench.json'}{''.join(f', {path.name}' for path in plotted)}"
    )
    return 0


def frames_of(path: Path, side: int, count: int) -> list[Pixels]:
    """The first ``count`` pictures of a video, fitted to side². Raises UserError."""
    pictures = []
    for pixels in ClipReader(path.expanduser()):
        pictures.append(fit(pixels, side, side, "crop"))
        if len(pictures) == count:
            break
    return pictures


def with_still_passages(side: int, count: int) -> list[Pixels]:
    """A moving pattern that stands still for every second half of forty frames."""
    return [draw("plasma", side, side, (k // 40 * 20 + min(k % 40, 20)) / 30) for k in range(count)]


def latency(subject: Any, count: int) -> Iterator[Row]:
    """From texture in to texture out, stage by stage, at one step: what each costs one frame, in milliseconds."""
    from engine.bench.model import Stages

    stages = Stages(subject.model)
    stream = subject.stream(stages.model, steps=1)
    context = multiprocessing.get_context("spawn")
    inbox, outbox = Mailbox(context), Mailbox(context)
    taken: dict[str, list[float]] = {
        name: [] for name in ("capture", "mailbox in", "engine", "mailbox out", "send", "whole")
    }
    try:
        with open_source(f"pattern:plasma?fps=1000&size={subject.side}x{subject.side}") as source:
            for _ in range(count):
                marks = [time.perf_counter()]
                frame = None
                while frame is None:
                    frame = source.read(1.0)
                pixels = fit(frame.pixels, subject.side, subject.side, "crop")
                marks.append(time.perf_counter())
                inbox.write(Frame(pixels, frame.sequence, frame.captured_at))
                arrived = inbox.read()
                marks.append(time.perf_counter())
                finished = stream.step([arrived]) or []
                marks.append(time.perf_counter())
                outbox.write(finished[0])
                last = outbox.read()
                marks.append(time.perf_counter())
                assert last is not None
                resize(last.pixels, subject.side, subject.side)
                marks.append(time.perf_counter())
                for name, one, two in zip(taken, marks[:-1], marks[1:], strict=False):
                    taken[name].append(two - one)
                taken["whole"].append(marks[-1] - marks[0])
    finally:
        stream.close()
        inbox.close()
        outbox.close()
    for name, seconds in {**taken, **{f"engine: {stage}": times for stage, times in stages.taken.items()}}.items():
        yield {"stage": name, **percentiles(seconds[len(seconds) // 10 :])}


def crossings(count: int) -> Iterator[Row]:
    """What the bridge costs a frame, mailbox to mailbox: nothing to be fitted, and a large picture made small and large again."""
    context = multiprocessing.get_context("spawn")
    inbox, outbox = Mailbox(context), Mailbox(context)
    try:
        for what, (width, height) in {
            "bridge, 512x512": (512, 512),
            "bridge, 1080p to 512x512 to 1080p": (1920, 1080),
        }.items():
            picture = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
            seconds = []
            for k in range(count):
                start = time.perf_counter()
                inbox.write(Frame(fit(picture, 512, 512, "crop"), k))
                between = inbox.read()
                assert between is not None
                outbox.write(between)
                last = outbox.read()
                assert last is not None
                resize(last.pixels, width, height)
                seconds.append(time.perf_counter() - start)
            yield {"what": what, **percentiles(seconds[count // 10 :])}
    finally:
        inbox.close()
        outbox.close()


def starts(name: str, quick: bool) -> Iterator[Row]:
    """From the command to the first transformed frame and to the compiled model: with nothing compiled before, and again."""
    if quick:
        yield {"start": "eager", **started(["--accelerate", "eager"], {}, False)}
        return
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            own = {"PHOSPHENE_CACHE": cache, "TMPDIR": cache}  # the compiler's own cache lies in the latter
            yield {"start": kind, **started(["--model", name], own, True)}


def started(arguments: Sequence[str], environment: Mapping[str, str], compiled: bool) -> Row:
    """One start of ``phosphene run`` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bridge",
        "run",
        "--osc-port",
        "0",
        "--http-port",
        "0",
        "--sink",
        "null:",
        "--steps",
        "1",
        *arguments,
    ]
    row: Row = {}
    began = time.monotonic()
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
            if re.search(r"^(compiled|eager), \d+ s|not accelerated", line):
                row["compiled_s"] = round(time.monotonic() - began, 1) if line.startswith("compiled") else None
                compiled = False
                if "first_frame_s" in row:
                    break
    finally:
        process.terminate()
        process.wait(20)
    return row


def percentiles(seconds: Sequence[float]) -> Row:
    """p50, p95 and p99 in milliseconds."""
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1000
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "p99_ms": round(float(p99), 2)}


def plots(found: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """A picture of each comparison: ours and theirs side by side. Empty where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install 'phosphene[bench]'")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for table in ("autopipeline", "stream_batch", "guidance"):
        rows = found.get(table, [])
        if not rows:
            continue
        labels = ["\n".join(str(row[key]) for key in ("steps", "mode", "theirs_dtype") if key in row) for row in rows]
        figure, axes = pyplot.subplots(figsize=(max(4.0, 1.1 * len(rows)), 3.6), layout="constrained")
        places = np.arange(len(rows))
        for shift, side, colour in ((-0.2, "ours", "#c2187f"), (0.2, "theirs", "#8a8f98")):
            heights = [row[f"{side}_ms"] for row in rows]
            axes.bar(
                places + shift,
                heights,
                0.38,
                yerr=[row[f"{side}_spread_ms"] / 2 for row in rows],
                label=side,
                color=colour,
            )
        for place, row in zip(places, rows, strict=True):
            axes.annotate(
                f"{row['ratio']}×", (place, max(row["ours_ms"], row["theirs_ms"])), ha="center", va="bottom", fontsize=9
            )
        axes.set_xticks(places, labels, fontsize=8)
        axes.set_ylabel("ms a frame")
        axes.set_title(table.replace("_", " "))
        axes.margins(y=0.15)
        axes.legend(frameon=False)
        path = folder / f"{table}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        written.append(path)
    return written
