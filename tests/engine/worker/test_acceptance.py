"""Values at fault are found among many, in few tries, and all others are in effect at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.shared.snapshot import Snapshot
from engine.worker.acceptance import apply_acceptable, default_values

VALUES = {
    "/prompt": "a barn", "/seed": 9, "/strength": 0.9, "/guidance": 3.0, "/feedback": 0.5, "/eta": 0.5,
    "/hook/blur/amount": 0.75, "/size": "512x512", "/master": 0.5,
}  # fmt: skip


def attempts(fails: Callable[[Snapshot], bool], error: Exception) -> tuple[list[Snapshot], Callable[[Snapshot], None]]:
    """Return the snapshots that are tried, and what tries them."""
    tried: list[Snapshot] = []

    def apply(snapshot: Snapshot) -> None:
        tried.append(snapshot)
        if fails(snapshot):
            raise error

    return tried, apply


@pytest.mark.parametrize(
    "culprits", [{"/seed"}, {"/hook/blur/amount"}, {"/prompt", "/eta"}, set(VALUES) - {"/size", "/master"}]
)
def test_exactly_the_values_at_fault_are_left_out(culprits: set[str]) -> None:
    requested = Snapshot(VALUES, 5)
    tried, apply = attempts(lambda s: any(s.get(name) == VALUES[name] for name in culprits), ValueError("no\nmore"))
    undone: list[None] = []
    applied = apply_acceptable(requested, default_values(requested), apply, lambda: undone.append(None))
    assert dict(applied.rejected) == {name: VALUES[name] for name in culprits}
    assert applied.snapshot.number == 5
    assert {name: applied.snapshot.get(name) for name in VALUES if name not in culprits} == {
        name: value for name, value in VALUES.items() if name not in culprits
    }
    assert dict(tried[-1]) == dict(applied.snapshot), "what is in effect was applied last"
    assert "/hook/blur/amount" not in applied.snapshot or "/hook/blur/amount" not in culprits
    assert applied.reason.endswith(": no")
    assert all(name in applied.reason for name in list(culprits)[:1] if len(culprits) <= 5)
    assert len(tried) <= 4 + 6 * len(culprits)
    assert len(undone) == sum(any(s.get(name) == VALUES[name] for name in culprits) for s in tried)


def test_a_pair_that_fails_together_loses_one() -> None:
    requested = Snapshot(VALUES)
    _, apply = attempts(lambda s: s["/seed"] == 9 and s["/eta"] == 0.5, ValueError("not both"))
    applied = apply_acceptable(requested, default_values(requested), apply, lambda: None)
    assert len(applied.rejected) == 1
    assert set(applied.rejected) <= {"/seed", "/eta"}


def test_a_crossfade_at_fault_is_left_out_alone() -> None:
    requested = Snapshot(VALUES, 3, (({"/prompt": "bad"}, 1.0),))
    _, apply = attempts(lambda s: bool(s.mixture), ValueError("bad"))
    applied = apply_acceptable(requested, default_values(requested), apply, lambda: None)
    assert not applied.rejected
    assert dict(applied.snapshot) == dict(requested)
    assert not applied.snapshot.mixture


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unspecified launch failure"), ValueError("the model")])
def test_no_value_is_blamed_for_the_model_or_the_device(error: Exception) -> None:
    requested = Snapshot(VALUES)
    tried, apply = attempts(lambda _: True, error)
    with pytest.raises(type(error), match=str(error)):
        apply_acceptable(requested, default_values(requested), apply, lambda: None)
    assert len(tried) <= 2
