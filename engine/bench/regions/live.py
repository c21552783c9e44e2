"""A stream with regions along its frames, against the dense stream, the similarity filter and repeated frames."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from engine.bench.measure import Row
from engine.bench.regions.equal_time import judge, psnr, squared_error
from engine.bench.regions.reuse import repeat_outputs
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

#: Frames that each stream plays in its turn; those of the first turn do not count.
FRAMES_PER_TURN = 10
FRAME_RATE = 30
#: Smallest lead that counts, in dB.
TIE_DB = 0.1


@dataclass(frozen=True)
class LiveMethod:
    """Settings of a stream; it is given one of every ``interval`` frames."""

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)
    share: float | None = None
    interval: int = 1


def list_methods(quick: bool) -> list[LiveMethod]:
    """Return everything that is compared, the dense stream first."""
    shares = (0.25,) if quick else (0.5, 0.25, 0.125)
    regions = [
        LiveMethod(mode, {"/regions": mode, "/regions/share": share}, share)
        for mode in ("change", "both")
        for share in shares
    ]
    filtered = LiveMethod("similarity filter", {"/similarity": True})
    return [LiveMethod("off"), *regions, filtered, LiveMethod("every second frame", interval=2)]


class Player:
    """One stream of a comparison. ``seconds`` is its time, ``idle`` the ticks without a denoiser call."""

    def __init__(self, model: Model, side: int, steps: int, method: LiveMethod) -> None:
        self.method, self._steps = method, steps
        self._stream = Stream(model, side, side, blocking=True)
        self._stream.apply(Snapshot({"/steps": steps, "/strength": 0.5, **method.values}))
        self._shown = np.zeros((side, side, 3), np.uint8)
        self.errors: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.seconds, self.ticks, self.idle = 0.0, 0, 0
        self._computed = self._stream.regions.counts.computed

    def play(self, frames: Sequence[Frame]) -> list[Pixels]:
        """Run a tick for each frame and return what is shown after it, RGB."""
        shown, start = [], time.perf_counter()
        for frame in frames:
            is_due = frame.sequence % self.method.interval == 0
            outputs = self._stream.step([frame]) if is_due else None
            self.idle += outputs is None
            if outputs:
                self._shown = outputs[-1].pixels[..., :3]
            shown.append(self._shown)
        self.seconds += time.perf_counter() - start
        self.ticks += len(frames)
        return shown

    @property
    def computed(self) -> float:
        """The share of the tokens that were computed, of those of the dense stream."""
        regions = self._stream.regions
        if not regions.is_active:
            return 1 - self.idle / self.ticks
        return (regions.counts.computed - self._computed) / (regions.tokens * self._steps * self.ticks)

    def close(self) -> None:
        """End the stream."""
        self._stream.close()


def measure(
    model: Model, side: int, clips: Mapping[str, Sequence[Pixels]], steps: Sequence[int], quick: bool
) -> Iterator[Row]:
    """Play each clip at each number of steps through all streams in turns, and yield a row for each of them."""
    for name, pictures in clips.items():
        frames = [Frame(picture, i, i / FRAME_RATE) for i, picture in enumerate(pictures)]
        for n in steps:
            players = [Player(model, side, n, method) for method in list_methods(quick)]
            dense = play_in_turns(players, frames)
            rows = [_describe(player, n) for player in players]
            for player in players:
                player.close()
            yield from ({"part": "live", "clip": name, **add_verdict(row, rows, dense)} for row in rows)


def play_in_turns(players: Sequence[Player], frames: Sequence[Frame]) -> list[Pixels]:
    """Play ``frames`` through all streams; return what the first one shows, and collect the errors of all."""
    dense: list[Pixels] = []
    for first in range(0, len(frames), FRAMES_PER_TURN):
        part = frames[first : first + FRAMES_PER_TURN]
        for i, player in enumerate(players):
            shown = player.play(part)
            if i == 0:
                dense += shown
            if first:
                player.errors += [squared_error(p, d) for p, d in zip(shown, dense[first:], strict=True)]
            else:
                player.reset()
    return dense


def _describe(player: Player, steps: int) -> Row:
    """Return the row of a stream, without a verdict."""
    row: Row = {"steps": steps, "mode": player.method.name}
    row |= {} if player.method.share is None else {"share": player.method.share}
    return row | {
        "frames": player.ticks,
        "fps": round(player.ticks / player.seconds, 1),
        "computed": round(player.computed, 3),
        "without_call": player.idle,
        "psnr_db": psnr(player.errors),
    }


def add_verdict(row: Row, rows: Sequence[Row], dense: Sequence[Pixels]) -> Row:
    """Return ``row`` with what repeated frames reach in its time, and whether it loses to them or to the filter."""
    if "share" not in row:
        return row
    rate = min(1.0, rows[0]["fps"] / row["fps"])
    reused = psnr_of_repeats(dense, rate, row["steps"])
    filtered = next(other for other in rows if other["mode"] == "similarity filter")
    others = {"repeated frames": reused}
    if filtered["fps"] >= row["fps"]:
        others["similarity filter"] = filtered["psnr_db"]
    verdict = judge(row["psnr_db"], others, TIE_DB)
    if rate == 1.0:
        verdict = "loses to the dense stream, which is as fast"
    return row | {"psnr_db of repeated frames": reused, "psnr_db verdict": verdict}


def psnr_of_repeats(dense: Sequence[Pixels], rate: float, steps: int) -> float | None:
    """Return the PSNR of a stream that computes ``rate`` of its frames, against ``dense``, what is shown if all are."""
    outputs = dense[steps - 1 :]  # the output of each frame
    shown = repeat_outputs(outputs, rate, steps)
    counted = range(FRAMES_PER_TURN, len(outputs))
    return psnr([squared_error(shown[i], dense[i]) for i in counted])


def stop_and_go(pictures: Sequence[Pixels], period: int = FRAME_RATE) -> list[Pixels]:
    """Return as many frames that move for ``period`` frames and stand still for as many."""
    return [pictures[k // (2 * period) * period + min(k % (2 * period), period)] for k in range(len(pictures))]


def still_background(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Return as many frames of the first picture, over which a patch of the moving ones goes round in two seconds."""
    height, width = pictures[0].shape[:2]
    side, frames = min(height, width) // 4, []
    for k, picture in enumerate(pictures):
        angle = 2 * np.pi * k / (2 * FRAME_RATE)
        y, x = (
            round((length - side) * (1 + 0.8 * turn(angle)) / 2) for length, turn in ((height, np.sin), (width, np.cos))
        )
        frame = pictures[0].copy()
        patch = picture[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
        cv2.circle(mask := np.zeros((side, side), np.uint8), (side // 2, side // 2), side // 2, 1, -1)
        frame[y : y + side, x : x + side][mask == 1] = patch[mask == 1]
        frames.append(frame)
    return frames
