"""What a flood of OSC says again and again: of the numbers that one parameter is set to in one go, the last one counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

from engine.shared.table import ROOT, TABLE

#: What follows the address of a message with one number, float or int.
NUMBERS = (b",f\0\0", b",i\0\0")
Sender = TypeVar("Sender", bound=Hashable)


def latest(came: Sequence[tuple[bytes, Sender]]) -> Sequence[tuple[bytes, Sender]]:
    """``came`` in its order, without the messages that set a parameter to a number and that a later one of the same sender overrides.

    Whatever else that sender says between the two may depend on the first, so both are kept then.
    """
    if len(came) < 2:
        return came
    names = _settable(tuple(TABLE))
    later: dict[Sender, set[bytes]] = {}
    kept = []
    for data, sender in reversed(came):
        end = data.find(0)
        name = data[:end]
        if name in names and _number(data, (end | 3) + 1):
            overridden = later.setdefault(sender, set())
            if name in overridden:
                continue
            overridden.add(name)
        else:
            later.pop(sender, None)
        kept.append((data, sender))
    kept.reverse()
    return kept


def _number(data: bytes, start: int) -> bool:
    """Whether one number that is one (no NaN, no infinity) is all that follows the address, from ``start`` on."""
    kind = data[start : start + 4]
    if kind not in NUMBERS or len(data) != start + 8:
        return False
    return kind == NUMBERS[1] or not (data[start + 4] & 0x7F == 0x7F and data[start + 5] & 0x80)


@lru_cache(maxsize=4)
def _settable(names: tuple[str, ...]) -> frozenset[bytes]:
    """The addresses of parameters that simply take a number."""
    return frozenset(
        (ROOT + name).encode() for name in names if TABLE[name].kind in ("float", "int", "bool") and TABLE[name].holds
    )
