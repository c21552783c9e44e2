"""How many connections, subscriptions and the like clients may hold, so that no client can use up what others need."""

from __future__ import annotations

import ipaddress
import sys
from collections import Counter
from dataclasses import dataclass

from bridge.errors import UserError

#: Open files and sockets that are not for clients: engine, standby, OSC, sinks, sources, files, a restart.
RESERVED_DESCRIPTORS = 112
#: Fewest open files with which a show can begin.
MIN_DESCRIPTORS = 48
#: Most open files that the process asks the system for.
MAX_DESCRIPTORS = 65536
#: Most HTTP and OSC connections over TCP, however many descriptors there are.
MAX_HTTP_CONNECTIONS, MAX_TCP_CONNECTIONS = 256, 128
#: Fewest connections of each kind, however few descriptors there are.
MIN_CONNECTIONS = 16


def is_loopback(address: str) -> bool:
    """Return whether a client at ``address`` is on this machine."""
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


class Quota:
    """Places for clients: ``limit`` in all, of which ``local`` are for this machine alone.

    One other machine may hold ``per_address`` of them. Not thread-safe.
    """

    def __init__(self, limit: int, local: int | None = None, per_address: int | None = None) -> None:
        self.limit = limit
        self.local = max(1, limit // 4) if local is None else local
        self.per_address = max(1, limit // 4) if per_address is None else per_address
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Places that are taken."""
        return self._held.total()

    def admits(self, address: str) -> bool:
        """Return whether a client at ``address`` may take one more place."""
        if self.held >= self.limit:
            return False
        if is_loopback(address):
            return True
        others = sum(count for other, count in self._held.items() if not is_loopback(other))
        return others < self.limit - self.local and self._held[address] < self.per_address

    def take(self, address: str) -> bool:
        """Take a place; return False where there is none."""
        if not self.admits(address):
            return False
        self._held[address] += 1
        return True

    def release(self, address: str) -> None:
        """Give a place back."""
        self._held[address] -= 1
        if self._held[address] <= 0:
            del self._held[address]


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections that the panel's port and OSC over TCP hold at once."""

    http: int = MAX_HTTP_CONNECTIONS
    tcp: int = MAX_TCP_CONNECTIONS


def raise_descriptor_limit() -> int:
    """Ask the system for as many open files as it permits; return how many there are. Windows has no such limit."""
    if sys.platform == "win32":
        return MAX_DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # Apple documents that the kernel has a limit of its own
        return soft
    return most


def share_descriptors(descriptors: int) -> ConnectionLimits:
    """Return the connections for a process of so many descriptors, after what is reserved for the show.

    Raises UserError where not even the show would have enough.
    """
    if descriptors < MIN_DESCRIPTORS:
        raise UserError(
            f"the system permits {descriptors} open files, a show needs {MIN_DESCRIPTORS}; run `ulimit -n 1024` first"
        )
    free = max(0, descriptors - RESERVED_DESCRIPTORS)
    return ConnectionLimits(
        http=min(MAX_HTTP_CONNECTIONS, max(MIN_CONNECTIONS, free * 3 // 5)),
        tcp=min(MAX_TCP_CONNECTIONS, max(MIN_CONNECTIONS, free * 3 // 10)),
    )
