"""What was made once is kept for as long as it is asked for with the same things."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Memo(Generic[T]):
    """The last ``most`` results by what they were made of: tensors count by identity, and are never changed in place; all else by value."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[object, ...], tuple[tuple[object, ...], T]] = OrderedDict()

    def get(self, make: Callable[[], T], *of: object) -> T:
        """What ``make`` gave when it was first asked for with ``of``."""
        key = tuple((Tensor, id(one)) if isinstance(one, Tensor) else one for one in of)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = (
                of,
                make(),
            )  # ``of`` is held on to: a tensor that is gone leaves its identity to another
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found[1]
