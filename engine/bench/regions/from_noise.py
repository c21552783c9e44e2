"""Pictures from noise: the model's focus against fewer full steps, random tokens and whole-frame reuse.

Quality is measured against the picture of all steps with the same prompt and seed, and against drawn pictures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from engine.bench.measure import Row
from engine.bench.regions.equal_time import at_time, judge, psnr, squared_error
from engine.bench.regions.reuse import DenoiserClock, StepReuse, computed_steps
from engine.diffusion.stream import Stream
from engine.image.quality import BAND_NAMES, band_energies
from engine.models import Model
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from engine.training.pocket.evaluate import Prompt, distance_to, draw_prompts, fixed_prompts

#: Steps of the picture that all others are compared with.
FULL_STEPS = 28
METRICS = ("std", "l2", "random")
#: Smallest lead that counts: in dB, and in Fréchet distance.
TIE_DB, TIE_DISTANCE = 0.1, 0.5
FIRST_SEED = 1000


@dataclass(frozen=True)
class Sampling:
    """One way to spend the denoiser's time on a picture; ``interval`` is that of whole-frame reuse."""

    method: str
    steps: int
    values: Mapping[str, Value] = field(default_factory=dict)
    share: float | None = None
    interval: int | None = None

    @property
    def computed(self) -> frozenset[int] | None:
        """The steps that call the denoiser, None for all."""
        if self.interval is None:
            return None
        return computed_steps(self.steps, self.interval, Snapshot().diffusion.regions)


@dataclass
class Paintings:
    """The pictures of one sampling, RGB, with the seconds and the share of the tokens that each took."""

    pictures: list[Pixels] = field(default_factory=list)
    denoiser: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)


def list_samplings(quick: bool) -> list[Sampling]:
    """Return everything that is compared, the full picture first."""
    dense = (12, 4) if quick else (24, 20, 16, 14, 12, 10, 8, 6, 4)
    samplings = [Sampling("dense", steps) for steps in (FULL_STEPS, *dense)]
    for steps in (12,) if quick else (12, FULL_STEPS):
        for metric in METRICS:
            for share in (0.25,) if quick else (0.5, 0.25, 0.125):
                values: dict[str, Value] = {"/regions": "focus", "/regions/share": share, "/regions/metric": metric}
                samplings.append(Sampling(f"focus {metric}", steps, values, share))
        samplings += [Sampling("reuse", steps, interval=n) for n in ((2, 0) if quick else (2, 3, 4, 0))]
    return samplings


class Painter:
    """Paints prompts from noise on one stream, whatever the sampling."""

    def __init__(self, model: Model, side: int) -> None:
        self._reuse = StepReuse(model)
        self._stream = Stream(self._reuse.model, side, side, blocking=True)
        self._clock = DenoiserClock(self._stream)
        self._blank = np.zeros((side, side, 4), np.uint8)

    def paint(self, prompt: str, seed: int, sampling: Sampling, paintings: Paintings) -> None:
        """Paint one picture and append it with its times."""
        values: dict[str, Value] = {"/mode": "text", "/eta": 0.0, "/steps": sampling.steps}
        self._stream.apply(Snapshot({**values, **sampling.values, "/prompt": prompt, "/seed": seed}))
        self._stream.settle()
        self._reuse.begin(sampling.computed)
        regions = self._stream.regions
        self._clock.seconds, computed = 0.0, regions.counts.computed
        start = time.perf_counter()
        outputs = self._stream.step([Frame(self._blank)])
        while not outputs:
            outputs = self._stream.step([])
        paintings.whole.append(time.perf_counter() - start)
        paintings.denoiser.append(self._clock.seconds)
        paintings.pictures.append(np.ascontiguousarray(outputs[0].pixels[..., :3]))
        steps = sampling.steps if sampling.computed is None else len(sampling.computed)
        tokens = regions.counts.computed - computed if regions.is_active else steps * regions.tokens
        paintings.computed.append(tokens / (sampling.steps * regions.tokens))

    def close(self) -> None:
        """End the stream."""
        self._stream.close()


def measure(model: Model, side: int, count: int, quick: bool) -> Iterator[Row]:
    """Paint ``count`` prompts in every way, all ways of a prompt in a row, and yield a row for each way."""
    samplings, prompts = list_samplings(quick), fixed_prompts(count)
    results, painter = [Paintings() for _ in samplings], Painter(model, side)
    for sampling in samplings:
        painter.paint(prompts[0].text, FIRST_SEED, sampling, Paintings())  # so that nothing is new when it is timed
    for i, prompt in enumerate(prompts):
        for sampling, paintings in zip(samplings, results, strict=True):
            painter.paint(prompt.text, FIRST_SEED + i, sampling, paintings)
    painter.close()
    drawn = [draw_at(side, prompts, seed) for seed in (1, 2)]
    yield {
        "part": "from noise", "method": "drawn, other seeds", "pictures": count,
        "distance": round(distance_to(drawn[1], drawn[0]), 1),
    }  # fmt: skip
    full = results[0].pictures
    rows = [_describe(s, paintings, full, drawn[0]) for s, paintings in zip(samplings, results, strict=True)]
    yield from (add_verdict(row, rows) for row in rows)


def draw_at(side: int, prompts: Sequence[Prompt], seed: int) -> list[Pixels]:
    """Draw each prompt as the training pictures are drawn, RGB uint8 (side, side, 3)."""
    pictures = draw_prompts(prompts, seed)
    return [np.asarray(cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA), np.uint8) for p in pictures]


def _describe(sampling: Sampling, paintings: Paintings, full: Sequence[Pixels], drawn: Sequence[Pixels]) -> Row:
    """Return the row of a sampling, without a verdict."""
    row: Row = {"part": "from noise", "method": sampling.method, "steps": sampling.steps}
    row |= {} if sampling.share is None else {"share": sampling.share}
    row |= {} if sampling.interval is None else {"interval": sampling.interval}
    ratios = band_energies(paintings.pictures) / band_energies(drawn)
    return row | {
        "computed": round(float(np.mean(paintings.computed)), 3),
        "denoiser_ms": round(float(np.median(paintings.denoiser)) * 1000, 1),
        "picture_ms": round(float(np.median(paintings.whole)) * 1000, 1),
        "psnr_db": psnr([squared_error(p, f) for p, f in zip(paintings.pictures, full, strict=True)]),
        **{f"energy {name}": round(float(ratio), 3) for name, ratio in zip(BAND_NAMES, ratios, strict=True)},
        "distance": round(distance_to(paintings.pictures, drawn), 1),
    }


def add_verdict(row: Row, rows: Sequence[Row]) -> Row:
    """Return ``row`` with what the other methods reach in its time, and whether it loses to them.

    Regions and reuse are compared within the same number of steps, and with fewer full steps.
    """
    method = str(row["method"])
    if method == "dense":
        return row
    others = {"fewer full steps": _of(rows, "dense"), "whole-frame reuse": _of(rows, "reuse", row["steps"])}
    others["random tokens"] = _of(rows, "focus random", row["steps"])
    others.pop({"reuse": "whole-frame reuse", "focus random": "random tokens"}.get(method, ""), None)
    verdict: Row = {}
    for measure_name, tie in (("psnr_db", TIE_DB), ("distance", TIE_DISTANCE)):
        reached = {
            name: at_time([(other["denoiser_ms"], other[measure_name]) for other in curve], row["denoiser_ms"])
            for name, curve in others.items()
        }
        verdict |= {f"{measure_name} of {name}": value for name, value in reached.items()}
        verdict[f"{measure_name} verdict"] = judge(row[measure_name], reached, tie, measure_name == "psnr_db")
    if any(row["denoiser_ms"] >= full["denoiser_ms"] for full in _of(rows, "dense", row["steps"])):
        verdict["psnr_db verdict"] += "; no faster than as many full steps"
    return row | verdict


def _of(rows: Sequence[Row], method: str, steps: object = None) -> list[Row]:
    """Return the rows of a method, of one number of steps if that is given."""
    return [row for row in rows if row["method"] == method and steps in (None, row["steps"])]
