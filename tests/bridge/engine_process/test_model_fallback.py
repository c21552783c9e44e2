"""The model fallback: when it gives up a model, and which one it chooses instead."""

from __future__ import annotations

from bridge.engine_process.model_fallback import MAX_DEATHS, ModelFallback


def test_the_fallback_prefers_the_last_good_model_and_then_the_built_in_one() -> None:
    requested = {"/model": "bad"}
    fallback = ModelFallback()
    for _ in range(MAX_DEATHS - 1):
        fallback.record_death()
    assert fallback.choose(requested) is None, "not enough deaths"
    fallback.record_death()
    assert fallback.choose(requested) is None, "nothing is known to work"
    fallback.record_success({"/model": "good"})
    assert fallback.choose(requested) is None
    fallback.record_rejection()
    assert fallback.choose(requested) == {"/model": "good"}
    fallback.record_rejection()
    builtin = fallback.choose({"/model": "good"})
    assert builtin is not None
    assert builtin["/model"] == "pocket"
