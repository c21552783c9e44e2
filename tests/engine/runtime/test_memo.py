"""Memo: results are reused for the same arguments, and the least recently used one is dropped."""

from __future__ import annotations

import torch

from engine.runtime.memo import Memo


def test_tensors_are_keyed_by_identity_and_the_rest_by_value() -> None:
    memo: Memo[int] = Memo(2)
    results = iter(range(10))
    one, equal = torch.ones(2), torch.ones(2)

    def get(*arguments: object) -> int:
        return memo.get(lambda: next(results), *arguments)

    assert [get(one, (1, 2)), get(equal, (1, 2)), get(one, (1, 2))] == [0, 1, 0]
    assert get("third") == 2
    assert get(one, (1, 2)) == 0
    assert get(equal, (1, 2)) == 3, "least recently used when the third came"
