"""Listening sockets for IPv4 and IPv6 addresses and names."""

from __future__ import annotations

import socket
import sys
from typing import Any


def resolve_address(host: str, port: int, kind: socket.SocketKind) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the socket address of ``host``; it may have a zone, ``fe80::1%eth0``. Raises OSError."""
    infos = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    infos.sort(key=lambda info: info[0] != (socket.AF_INET6 if ":" in host else socket.AF_INET))
    family, _, _, _, address = infos[0]
    return family, address


def open_listener(host: str, port: int, backlog: int = 64) -> socket.socket:
    """Return a listening TCP socket; ``::`` also takes IPv4 where the system can. Raises OSError, OverflowError."""
    if not 0 <= port < 65536:
        raise OverflowError("port must be 0-65535.")
    family, address = resolve_address(host, port, socket.SOCK_STREAM)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform not in ("win32", "cygwin"):  # elsewhere it would let two shows share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        accept_ipv4(listener, host)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def accept_ipv4(listener: socket.socket, host: str) -> None:
    """Let a socket on ``::`` take IPv4 as well, where the system can."""
    if listener.family == socket.AF_INET6:
        listener.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::" or not socket.has_dualstack_ipv6())
        )


def format_host(host: str) -> str:
    """Return ``host`` as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
