"""Counts of tokens: their share over a second, and sums that a restart and another stream leave as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.diffusion.stream import Stream
from engine.diffusion.token_counts import TokenCounts
from engine.models.regional.base import TokenChoice
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from tests.engine.diffusion.test_regional_sampling import load

VALUES: dict[str, Value] = {
    "/regions": "change", "/regions/share": 0.25, "/regions/refresh": 4, "/steps": 1, "/strength": 0.5, "/eta": 0.0,
}  # fmt: skip


def test_the_share_is_that_of_the_last_second() -> None:
    now = [10.0]
    counts = TokenCounts(lambda: now[0])
    assert counts.share() == 1.0
    counts.add(100, 0)
    now[0] = 10.9
    counts.add(25, 75)
    assert counts.share() == 125 / 200
    now[0] = 11.5
    assert counts.share() == 25 / 100, "the first call was 1.5 s ago"
    counts.add_still(2, 50)
    assert counts.share() == 25 / 200
    now[0] = 99.0
    assert counts.share() == 0.0, "the last call counts, however old it is"
    assert (counts.computed, counts.skipped, counts.still) == (125, 175, 2)


def grey(side: int, corner: int = 90) -> Frame:
    """Return a grey picture whose first quarter, at the top left, is ``corner``."""
    pixels = np.full((side, side, 4), 90, np.uint8)
    pixels[: side // 2, : side // 2] = corner
    return Frame(pixels)


def open_stream(side: int = 64, refresh: int = 4) -> Stream:
    stream = Stream(load("sd3")[0], side, side, blocking=True)
    stream.apply(Snapshot(VALUES | {"/regions/refresh": refresh}))
    return stream


def test_every_token_of_a_frame_is_counted_once_and_the_map_shows_what_was_computed() -> None:
    stream = open_stream(128, refresh=0)
    regions, side = stream.regions, int(stream.regions.tokens**0.5)
    assert np.array_equal(regions.read_map(), np.full((side, side), 255)), "nothing was skipped yet"
    choices: list[TokenChoice] = []
    denoise = stream.model.denoise_tokens

    def record(*arguments: Any) -> Any:
        choices.append(arguments[4])
        return denoise(*arguments)

    stream.model.denoise_tokens = record  # type: ignore[method-assign]
    for corner in (90, 90, 250):
        before = regions.counts.computed, regions.counts.skipped
        stream.step([grey(128, corner)])
        computed, skipped = regions.counts.computed - before[0], regions.counts.skipped - before[1]
        assert computed + skipped == regions.tokens
        grid = regions.read_map()
        assert (grid == 255).sum() == computed
        assert set(np.unique(grid)) <= {0, 255}
    active = choices[-1].active
    assert active is not None
    assert active.shape[-1] == computed == regions.tokens // 4
    rows, columns = np.divmod(active.flatten().numpy(), side)
    assert set(zip(rows, columns, strict=True)) == set(zip(*np.nonzero(grid), strict=True))


def test_a_still_picture_counts_skipped_frames_and_a_share_of_zero() -> None:
    stream = open_stream()
    frames = 4 * 10
    returned = [stream.step([grey(64)]) for _ in range(frames)]
    still = returned.count(None)
    assert still > 4 * 5
    assert (stream.stats.skipped, stream.regions.counts.still) == (still, still)
    counts = stream.regions.counts
    assert counts.computed + counts.skipped == frames * stream.regions.tokens
    assert not stream.regions.read_map().any()
    stream.apply(Snapshot(VALUES | {"/regions": "off"}))
    assert stream.regions.share == 1.0
    assert stream.step([grey(64)])
    assert counts.computed + counts.skipped == frames * stream.regions.tokens, "without regions nothing is counted"


@pytest.mark.parametrize("reset", [Stream.restart, Stream.discard_not_finite])
def test_a_reset_and_another_stream_count_on(reset: object) -> None:
    assert callable(reset)
    stream, successor = open_stream(), open_stream()
    for _ in range(30):
        stream.step([grey(64)])
    successor.step([grey(64)])  # its warm-up counts for nothing
    counts, skipped = stream.regions.counts, stream.stats.skipped
    sums = (counts.computed, counts.skipped, counts.still)
    assert min(*sums, skipped) > 0
    reset(stream)
    assert (counts.computed, counts.skipped, counts.still, stream.stats.skipped) == (*sums, skipped)
    successor.take_over(stream)
    for shown in (successor, stream):  # both run during a crossfade
        shown.step([grey(64, 200)])
    total = successor.regions.counts.computed + successor.regions.counts.skipped
    assert total == sum(sums[:2]) + 2 * stream.regions.tokens
    assert successor.stats.skipped == skipped
