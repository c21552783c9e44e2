"""Coalescing of OSC floods: keep only the last number sent to each parameter in a batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

from engine.shared.table import ROOT, TABLE

#: Type tags, padded, of a message with one number: float or int.
FLOAT_TAG, INT_TAG = b",f\0\0", b",i\0\0"
Sender = TypeVar("Sender", bound=Hashable)


def coalesce(packets: Sequence[tuple[bytes, Sender]]) -> Sequence[tuple[bytes, Sender]]:
    """Drop each message that sets a parameter to a number if a later one of the same sender overrides it.

    The order stays. Any other packet of that sender between the two may depend on the first, which then stays too.
    """
    if len(packets) < 2:
        return packets
    addresses = _numeric_addresses(TABLE.version)
    overriding: dict[Sender, set[bytes]] = {}
    remaining = []
    for data, sender in reversed(packets):
        end = data.find(0)
        address = data[:end]
        if address in addresses and _holds_one_number(data, (end | 3) + 1):
            later = overriding.setdefault(sender, set())
            if address in later:
                continue
            later.add(address)
        else:
            overriding.pop(sender, None)
        remaining.append((data, sender))
    remaining.reverse()
    return remaining


def _holds_one_number(data: bytes, start: int) -> bool:
    """Return whether the message holds, from byte ``start``, exactly one finite number."""
    tag = data[start : start + 4]
    if tag not in (FLOAT_TAG, INT_TAG) or len(data) != start + 8:
        return False
    return tag == INT_TAG or not (data[start + 4] & 0x7F == 0x7F and data[start + 5] & 0x80)


@lru_cache(maxsize=1)
def _numeric_addresses(_table_version: int) -> frozenset[bytes]:
    """Return the addresses of the parameters that hold a number."""
    return frozenset(
        (ROOT + name).encode()
        for name, parameter in TABLE.items()
        if parameter.kind in ("float", "int", "bool") and parameter.has_value
    )
