"""Listening sockets for IPv4 and IPv6 addresses and names."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any


class HostError(OSError):
    """``host`` cannot be listened on, whatever the port; ``strerror`` is the reason."""

    def __init__(self, number: int, reason: str, host: str) -> None:
        super().__init__(number, reason)
        self.host = host


def resolve_address(host: str, port: int, kind: socket.SocketKind) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the socket address of ``host``; it may have a zone, ``fe80::1%eth0``. Raises HostError."""
    try:
        infos = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise HostError(errno.EADDRNOTAVAIL, "no such address or host name", host) from None
    infos.sort(key=lambda info: info[0] != (socket.AF_INET6 if ":" in host else socket.AF_INET))
    family, _, _, _, address = infos[0]
    return family, address


def open_listener(host: str, port: int, backlog: int = 64) -> socket.socket:
    """Return a listening TCP socket; ``::`` also takes IPv4 where the system can. Raises OSError, OverflowError."""
    listener, address = _open(host, port, socket.SOCK_STREAM)
    try:
        if sys.platform not in ("win32", "cygwin"):  # elsewhere it would let two shows share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, host, address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def bind_udp(host: str, port: int) -> socket.socket:
    """Return a bound UDP socket; ``::`` also takes IPv4 where the system can. Raises OSError, OverflowError."""
    receiver, address = _open(host, port, socket.SOCK_DGRAM)
    try:
        _bind(receiver, host, address)
    except BaseException:
        receiver.close()
        raise
    return receiver


def _open(host: str, port: int, kind: socket.SocketKind) -> tuple[socket.socket, Any]:
    """Return a socket and the address to bind it to. Raises OSError, OverflowError."""
    if not 0 <= port < 65536:
        raise OverflowError("port must be 0-65535.")
    family, address = resolve_address(host, port, kind)
    try:
        return socket.socket(family, kind), address
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise HostError(error.errno, "this system has no IPv6", host) from None
        raise


def _bind(unbound: socket.socket, host: str, address: Any) -> None:
    is_ipv6 = unbound.family == socket.AF_INET6
    if is_ipv6:
        only_ipv6 = host != "::" or not socket.has_dualstack_ipv6()
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
    try:
        unbound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            cause = "not an address of this machine" + (", or its IPv6 is switched off" if is_ipv6 else "")
            raise HostError(error.errno, cause, host) from None
        raise


def format_host(host: str) -> str:
    """Return ``host`` as URLs have it: an IPv6 address in brackets, the sign of its zone encoded."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host
