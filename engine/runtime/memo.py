"""An LRU memo: tensors are keyed by identity, everything else by value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Memo(Generic[T]):
    """The ``max_entries`` last used results, by their arguments. Tensors among these must not change in place."""

    def __init__(self, max_entries: int = 64) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[object, ...], tuple[tuple[object, ...], T]] = OrderedDict()

    def get(self, compute: Callable[[], T], *arguments: object) -> T:
        """Return the result for ``arguments``, calling ``compute`` the first time."""
        key = tuple((Tensor, id(one)) if isinstance(one, Tensor) else one for one in arguments)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        else:
            # The arguments are stored too: a freed tensor's id may be reused by another.
            entry = self._entries[key] = (arguments, compute())
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        return entry[1]
