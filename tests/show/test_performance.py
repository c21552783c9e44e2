"""Performance with the real engine: crossfades that end on the beat, cues, panic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.show.stage import Stage
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("presets")
    (folder / "cold.toml").write_text('prompt = "blue waves"\nsteps = 1\nseed = 3\nstrength = 0.7\n')
    (folder / "hot.toml").write_text(
        'prompt = "orange fire"\nsteps = 1\nseed = 8\nstrength = 0.9\n[preset]\nfade = 4\nunit = "beats"\n'
    )
    (folder / "cues").mkdir()
    (folder / "cues" / "night.toml").write_text(
        '[[cue]]\nnumber = 1\npreset = "cold"\n[[cue]]\nnumber = 2\npreset = "hot"\n'
        "[[cue]]\nnumber = 3\nvalues = { master = 0.0 }\nfade = 1\n"
    )
    with Stage(presets=[folder]) as running:
        running.wait_until_live()
        running.send("/preset", "hot")  # both prompts are encoded before a test measures
        time.sleep(2.5)
        yield running


def wait_for_fade(stage: Stage) -> None:
    until(lambda: stage.show.automation.crossfader.progress is None, 20, "the end of the fade")


def wait_for_last_beat(stage: Stage) -> float:
    """Wait for the end of the fade without a pause; return the beat at that moment."""
    while stage.show.automation.crossfader.progress is not None:
        time.sleep(0.001)
    return stage.show.automation.tempo.beats()


def test_a_crossfade_of_four_beats_ends_on_the_beat_and_no_frame_is_late(stage: Stage) -> None:
    longest = [measure_crossfade(stage) for _ in range(2)]
    if min(longest) >= 150:  # another program may use the machine meanwhile: one undisturbed fade is enough
        longest.append(measure_crossfade(stage))
    assert min(longest) < 150


def measure_crossfade(stage: Stage) -> float:
    """Fade from one preset to the other and check the beat of its end; return the longest gap in milliseconds."""
    stage.send("/preset", "cold")
    time.sleep(0.5)
    start, first = time.perf_counter(), stage.show.automation.tempo.beats()
    stage.send("/preset", "hot")
    until(lambda: stage.show.automation.crossfader.progress is not None, 2)
    assert len(stage.state.snapshot().mixture) == 2
    beat = wait_for_last_beat(stage)
    frame = 60.0 / 1000 * float(stage.state.snapshot().real("/tempo")) / 60.0  # a frame of 60 ms, in beats
    assert round(beat) == round(first + 4)
    assert 0 <= beat - round(beat) < frame
    number = stage.state.number
    until(lambda: stage.audience.has_seen(number), 2, "a frame of the target preset alone")
    gaps = stage.audience.gaps(start) * 1000
    late = (beat - round(beat)) * 500
    print(
        f"crossfade: ended {late:.0f} ms after the beat, "
        f"longest gap {gaps.max():.0f} ms, median {np.median(gaps):.0f} ms"
    )
    return float(gaps.max())


def test_an_interrupted_crossfade_continues_from_its_present_mixture(stage: Stage) -> None:
    stage.send("/preset", "cold")
    time.sleep(0.5)
    stage.send("/preset", "hot")
    time.sleep(1.0)
    before, strength = stage.state.snapshot().mixture, stage.state.snapshot().real("/strength")
    stage.send("/preset/fade", 2.0)
    stage.send("/preset", "cold")
    until(lambda: len(stage.state.snapshot().mixture) == 3, 2)
    shares = [share for _, share in stage.state.snapshot().mixture]
    assert shares[0] == pytest.approx(before[0][1], abs=0.12)
    assert stage.state.snapshot().real("/strength") == pytest.approx(strength, abs=0.03)
    wait_for_fade(stage)
    assert (stage.state.snapshot()["/prompt"], stage.state.snapshot().mixture) == ("blue waves", ())
    stage.send("/preset/fade", -1.0)


def test_cues_are_seen_and_panic_ends_the_blackout(stage: Stage) -> None:
    stage.send("/cue/list", "night")
    until(lambda: stage.show.status().show["cues"]["next"] == "1", 2)
    stage.send("/cue/go")
    until(lambda: stage.show.status().show["cues"]["current"] == "1", 2)
    wait_for_fade(stage)
    time.sleep(0.6)
    cold = stage.audience.picture
    stage.send("/cue/go")
    until(lambda: stage.show.status().show["cues"]["current"] == "2", 2)
    time.sleep(2.6)
    hot = stage.audience.picture
    assert cold is not None
    assert hot is not None
    colour = [picture.pixels[..., :3].reshape(-1, 3).mean(0) for picture in (cold, hot)]
    assert colour[0][2] > colour[0][0], "blue waves"
    assert colour[1][0] > colour[1][2], "orange fire"
    stage.send("/cue/go")
    time.sleep(1.6)
    dark = stage.audience.picture
    assert dark is not None
    assert dark.pixels[..., :3].max() == 0
    stage.send("/panic")
    until(
        lambda: (picture := stage.audience.picture) is not None and picture.pixels[..., :3].max() > 60,
        1,
        "a bright picture",
    )
    assert stage.show.status().show["cues"]["current"] == ""


def test_presets_are_in_the_status(stage: Stage) -> None:
    status = stage.show.status().show
    assert {"cold", "hot", "neon-tunnel"} <= {preset["name"] for preset in status["presets"]}
    assert status["preset_problems"] == {}
