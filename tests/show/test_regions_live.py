"""The pocket transformer with regions on: a minute of random changes, and the output never waits."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from engine.shared.table import TABLE
from tests.show.stage import Stage
from tests.waiting import MINUTE

pytestmark = pytest.mark.slow
PROMPTS = ("neon tunnel, magenta and cyan", "orange fire", "blue ink", "white stars", "green spiral", "red rings")
#: Longest gap on the output of the quiet machine, and what other work on it may add, in seconds.
MAX_GAP_SECONDS, MARGIN_SECONDS = 0.1, 0.05


def random_change(rng: random.Random) -> tuple[str, object]:
    """Return a parameter and a value for it: of the regions, the prompt, the seed, the strength, one step or two."""
    names = [name for name in TABLE if name.startswith("/regions") and name != "/regions/reset"]
    name = rng.choice([*names, *names, "/prompt", "/seed", "/strength", "/steps"])
    parameter = TABLE[name]
    if name == "/prompt":
        return name, rng.choice(PROMPTS)
    if name == "/steps":
        return name, rng.choice((1, 2))
    if parameter.kind == "choice":
        return name, rng.choice(parameter.choices)
    if parameter.kind == "bool":
        return name, rng.random() < 0.5
    value = rng.uniform(parameter.low, min(parameter.high, 1000.0))
    return name, value if parameter.kind == "float" else int(value)


def test_a_minute_of_random_changes_leaves_no_gap() -> None:
    rng = random.Random(4)
    with Stage(model="pocket-dit", regions="both", steps="2") as stage:
        stage.wait_until_live()
        supervisor = stage.show.supervisor
        errors, rejected = supervisor.errors, stage.state.rejected
        stage.audience.shown.clear()
        start = due = time.perf_counter()
        changes = 0
        while time.perf_counter() - start < MINUTE:
            name, value = random_change(rng)
            stage.send(name, value)
            changes += 1
            due += 0.1
            time.sleep(max(0.0, due - time.perf_counter()))
        gaps = stage.audience.gaps(start)
        rate = stage.audience.count_transformed(start) / MINUTE
        print(
            f"{changes} changes: longest gap {gaps.max() * 1000:.0f} ms, median {np.median(gaps) * 1000:.0f} ms, "
            f"{rate:.1f} new frames a second"
        )
        assert (supervisor.errors, supervisor.starts) == (errors, 1), supervisor.last_error
        assert stage.state.rejected == rejected
        assert gaps.max() <= MAX_GAP_SECONDS + MARGIN_SECONDS
        assert rate > 5.0
